"""A checkpoint's network: its factory is found, built within bounds, and filled with the file's tensors."""
