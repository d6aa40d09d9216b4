"""Privacy: what an update may tell of its owner's data: ``clip.clip_l2``, ``sensitivity.Sensitivity``."""
