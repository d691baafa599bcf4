"""What happened, as data, and how it is told."""
