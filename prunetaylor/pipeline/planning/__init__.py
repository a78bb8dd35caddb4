"""Every choice of a run is made here, once, from the configuration and facts; ``plan.py`` is the entry."""
