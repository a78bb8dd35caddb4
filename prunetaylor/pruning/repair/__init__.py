"""Repair: the kept weights compensate for the removed ones, by least squares, batch norm or refinement."""
