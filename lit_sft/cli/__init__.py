"""The command line, from its words to a run or to a line that says what is wrong."""
