"""One trial of a sweep: its run, its files, its state, and the samples that rank it."""
