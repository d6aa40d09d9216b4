"""Merging folders of adapters: PEFT folders in, a PEFT folder out, and no base model loaded.

Entry points: :func:`headwater.merging.offline.merge.merge`, and :class:`~headwater.merging.offline.rule.Rule`
for a new rule. Nothing here loads torch: an adapter is a file of numbers, and NumPy merges them.
"""
