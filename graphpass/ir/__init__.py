"""What a model is: nodes and tensors, what rules ask of them, from a proto and back."""
