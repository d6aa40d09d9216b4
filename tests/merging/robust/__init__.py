"""Rules against hostile clients."""
