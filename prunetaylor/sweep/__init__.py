"""Many runs from one file: what is varied, where each trial stands, who runs it, which is best."""
