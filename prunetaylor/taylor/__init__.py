"""The error of a network on samples, and its Taylor expansion."""
