"""Messages as frozen data, keys as values, and the coordinator as a machine without I/O."""
