"""The passes that make a map of scores of a classifier."""
