"""The small base model that ships with the package, and the script that trains it."""
