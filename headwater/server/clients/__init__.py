"""The clients of a run: who is there, what is sent to them, what comes back."""
