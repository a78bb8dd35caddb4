"""What is removed together: one file a structure, found by its name."""
