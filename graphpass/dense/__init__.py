"""From a classifier of one resolution to a map of scores at any."""
