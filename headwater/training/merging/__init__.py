"""Merges that look at rows: the base model with the adapters in it, and what each rule measures there.

Entry points: :func:`headwater.training.merging.call.merge` and
:func:`headwater.training.merging.measure.measured`.
"""
