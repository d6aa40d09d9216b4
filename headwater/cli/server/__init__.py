"""``headwater server …``: a file per group of verbs."""
