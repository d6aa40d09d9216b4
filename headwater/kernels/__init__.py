"""Loops over values that NumPy would need many passes for: :mod:`.gate` says whether any are compiled."""
