"""Repairs: a file each, found by its name. A repair compensates in closed form for the weights that a stage removed."""
