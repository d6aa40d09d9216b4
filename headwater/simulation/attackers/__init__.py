"""Clients of an experiment that lie (``[[simulation.attackers]]``): :mod:`.attacks` is the entry."""
