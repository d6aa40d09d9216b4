"""Privacy: what an update, and a sum of updates, may tell of their owners' data.

``clip.clip_l2`` and ``sensitivity.Sensitivity`` bound it, ``noise.discrete_gaussian`` hides it; ``events``
say what was told, ``ledger.Ledger`` keeps it, ``accounting.price`` says what they cost, and
``audit`` what attacks get.
"""
