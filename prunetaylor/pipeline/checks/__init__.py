"""Checks of the network before any work: accuracy above chance, and the memory format that its code supports."""
