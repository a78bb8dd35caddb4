"""One run, from opening the checkpoint to its results."""
