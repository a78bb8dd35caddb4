"""Refiners: a file each, found by its name.

A refiner moves all kept weights at once, in steps that holdout samples confirm.
"""
