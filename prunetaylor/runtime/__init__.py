"""Torch on this machine: devices, cores, memory, processes, and the corners of torch that need care."""
