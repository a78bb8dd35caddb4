"""What the commands show: results and errors, progress, a running sweep, and the next steps."""
