"""One module for each family of encoders: its tensors, sizes and forward pass."""
