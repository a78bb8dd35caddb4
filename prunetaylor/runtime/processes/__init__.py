"""Several processes on one run: their places, their exchange of values, and training on them."""
