"""`lit-sft report`: what a run has left, as a page that one can look at."""
