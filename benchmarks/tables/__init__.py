"""One table a file: a new one is found by its name, in no other place."""
