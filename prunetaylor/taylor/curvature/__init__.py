"""Curvatures of the error, and the Taylor model made of them."""
