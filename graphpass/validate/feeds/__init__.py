"""What a model is fed: drawn, found by search, or given by the user."""
