"""Many clients' adapters trained as one batch over one frozen base."""
