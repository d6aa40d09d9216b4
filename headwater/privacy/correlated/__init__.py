"""Correlated noise: matrix mechanisms for sums that follow each other, as DP-FTRL uses them (no torch here).

Noise of one round takes back some of an earlier round's, so the sum over rounds, which is what a model is,
has less of it (Kairouz et al. 2021, arXiv 2103.00039). No chance has to hide who takes part.
``mechanism.Mechanism`` is the matrix; ``tree``, ``toeplitz`` and ``blt`` are the kinds; ``optimise`` finds
their parameters; ``noise.CorrelatedNoise`` draws, in whole numbers.
"""
