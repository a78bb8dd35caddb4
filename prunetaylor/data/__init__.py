"""A name becomes samples: sources read splits, and everything after them sees splits, samples and batches."""
