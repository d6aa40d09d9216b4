"""Privacy: what an update may tell of its owner's data: :func:`headwater.privacy.clip.clip_l2`."""
