"""The torch-free ground: errors, progress, the registry, configuration, and results as plain values."""
