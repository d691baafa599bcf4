"""Model files: weights stay where they are until asked for, and go from file to file."""
