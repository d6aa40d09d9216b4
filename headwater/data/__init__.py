"""Local data: formats, partitions, splits, tokenised examples. :mod:`.federated` is the entry."""
