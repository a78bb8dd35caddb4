"""What a network is worth: metrics and their paired comparison, size and cost."""
