"""Measurements of a network: metrics and their paired comparison, size, operations and latency."""
