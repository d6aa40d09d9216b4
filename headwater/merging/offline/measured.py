"""Measured: what rows said of the adapters, for a merge by a rule of the family :class:`DataRule`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.rule import Floats


@dataclass(frozen=True)
class Measured:
    """What a merge goes by.

    Args:
        coefficients: c [T] of Σ c_i·τ_i, by LoRA module and by other tensor that has a place where nothing is
            changed; empty where ``changes`` say what comes out.
        changes: of each LoRA module the merged change U·C·Vᵀ: its bases and C.
        values: merged values of other tensors; those that are not there are averaged by weight.
        shares: what each adapter counts [T], to be told, where ``changes`` do not say it.
        facts: what was found, for ``merge.json``.
        files: more files of the result's folder, by name.
        notes: what the user must know, a sentence each.
    """

    coefficients: Mapping[str, Floats] = field(default_factory=dict)
    changes: Mapping[str, tuple[Basis, Floats]] = field(default_factory=dict)
    values: Mapping[str, Floats] = field(default_factory=dict)
    shares: Floats | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
