"""Networks, samples and helpers that several tests share."""
