"""The typed, strict configuration and where each of its values came from. Free of torch."""
