"""Several processes at one run: where a process stands among them, what they tell each other, what training shares."""
