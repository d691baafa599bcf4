"""One straight road from a model to its result: passes, checks, the file."""
