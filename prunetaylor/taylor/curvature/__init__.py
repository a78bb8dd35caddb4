"""Curvatures of the error, one approximation a module, and their cache."""
