"""The command line: one file for each command. It installs as prunetaylor.cli."""
