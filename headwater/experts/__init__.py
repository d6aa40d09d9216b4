"""Experts: adapters at rest in one small file each, ``.hw``, which is merged without being unpacked.

Entry points: :func:`headwater.experts.compress.compress`, :func:`headwater.experts.decompress.decompress`,
:func:`headwater.experts.expert_file.open_adapter`. Nothing here loads torch. The format is
``docs/reference/experts.md``.
"""
