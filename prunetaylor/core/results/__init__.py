"""Results as plain values: a run's, a scoring's, a sweep's, the gate's, and a checkpoint file's contents."""
