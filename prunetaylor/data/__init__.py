"""Name -> samples. Sources are files of ``sources/``; everything after them sees splits, samples and batches."""
