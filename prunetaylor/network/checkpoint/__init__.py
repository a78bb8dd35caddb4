"""A file becomes a network, and a network a file: recognising, reading without running code, building, writing."""
