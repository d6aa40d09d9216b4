"""Privacy: bounds on what an update may hold. Entry point: :func:`headwater.privacy.clip.clip_l2`."""
