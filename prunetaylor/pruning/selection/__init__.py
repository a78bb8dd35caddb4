"""Selection: the size of each stage, and the groups that it removes within a budget."""
