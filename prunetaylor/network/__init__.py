"""Networks: their prunable layers as matrices, their state and names, and checkpoints."""
