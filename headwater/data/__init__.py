"""Local data: formats, partitions, splits, tokenised examples. :mod:`headwater.data.federated` is the entry."""
