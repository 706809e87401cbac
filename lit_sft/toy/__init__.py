"""The small base model that ships with the package, and the word problems that it learns."""
