"""One module for each family: its tensors, sizes and forward pass."""
