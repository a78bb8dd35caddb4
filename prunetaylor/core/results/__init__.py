"""Results as plain values: a run's outcome, its verdict, and the gate's."""
