"""Trackers: who is told of a run's rounds, each in a thread of its own, and never at a round's cost."""
