"""Results as HTML: one self-contained page for a run, a sweep or a comparison, with its figures."""
