"""``headwater client …``: a file per group of verbs."""
