"""What several passes use: arithmetic, and rules that more than one pass runs."""
