"""States and lists of versions for tests."""

from __future__ import annotations

import torch

from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec.of([TensorSpec("b.lora_B", (2, 3), "lora_b"), TensorSpec("a.head", (4,), "head")])


def state(fill):
    return AdapterState.from_vector(SPEC, torch.arange(10, dtype=torch.float32) * fill)


def add(versions, round, fill=None, **changes):
    fields = {
        "run": "r" * 32,
        "round": round,
        "parent": round,
        "config_sha256": "c" * 64,
        "cohort": ["ben", "ann"],
        "metric": "accuracy",
        "value": 0.5 + round / 100,
        "best": False,
        "note": f"round {round}",
        "created": 1000.5 + round,
    }
    return versions.add(state(float(round) if fill is None else fill), **{**fields, **changes})


def numbers(versions):
    return [row.version for row in versions.rows() if row.kept]
