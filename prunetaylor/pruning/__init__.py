"""What a configuration can name: criteria, structures, selection, repair and training."""
