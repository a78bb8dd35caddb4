"""Which groups go: ranking, schedule."""
