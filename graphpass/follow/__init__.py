"""Following the axes of inputs through a network: where the batch, height and width go."""
