"""Pruning: criteria, structures, selection, repair and training, which a configuration names."""
