"""A file becomes a network, and a network a file: sniffing, safe reading, architecture, writing."""
