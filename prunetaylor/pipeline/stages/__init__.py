"""The stages of pruning: the loop over them, one stage's step, and the state that a run resumes from."""
