"""Results in a terminal: tables that fit 80 columns, the console, and a progress bar."""
