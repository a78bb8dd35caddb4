"""Which tensors are prunable, how a layer is a matrix, and code named by the user."""
