"""Criteria: a file each, found by its name.

A criterion is a class derived from :class:`prunetaylor.pruning.interfaces.Criterion`, alone in its file, whose module
docstring gives the formula of the score s_j, the paper and the number of the equation. Files whose names start with an
underscore hold what several criteria share.
"""
