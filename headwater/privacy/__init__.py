"""Privacy: what an update may hold (:func:`headwater.privacy.clip.clip_l2`), who says so (:mod:`signing`)."""
