"""Estimates of a run's memory and time, made before it starts."""
