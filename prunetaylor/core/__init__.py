"""What needs no torch: errors, progress, the registry, configuration, and results as plain values."""
