"""A device's part in masked sums. Entry: :class:`.masked_sums.MaskedSums`. No torch."""
