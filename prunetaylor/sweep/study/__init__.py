"""The state of a sweep in Optuna: trials, sampled values, and the journal that holds both."""
