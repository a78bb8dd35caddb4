"""Verdicts on a pruned network: limits, what samples can say of them, and the exit code that follows."""
