"""The output of the commands: results and errors, progress, a running sweep, and the next steps."""
