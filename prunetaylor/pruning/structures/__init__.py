"""Structures: a file each, found by its name. A structure says which weights are removed together."""
