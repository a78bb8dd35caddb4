"""Verdicts on a pruned network: limits, the statistics that judge them, and the exit code."""
