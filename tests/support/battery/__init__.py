"""Small networks of every kind that people bring, as they would first write them, one case each.

A case is a factory with the samples that train it for a moment. ``benchmarks/battery.py`` prunes them all and counts
how many work; a case is added by a function with :func:`cases.case` in the module of its theme.
"""
