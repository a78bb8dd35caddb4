"""The files of a run: its folder, the state that it can be resumed from, and its results."""
