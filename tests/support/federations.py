"""Federations over tiny models for tests: :func:`federation`, :func:`adapted`, :func:`examples`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headwater.adapters.base import load_base
from headwater.adapters.model import AdaptedModel
from headwater.config import Federation, LoadedFederation
from headwater.seeds.keys import Key
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.table import task_of
from tests.support.tiny_models import tiny_bert, tiny_electra, tiny_gpt2, tiny_llama, tiny_roberta

LABELS = ("negative", "neutral", "positive")
MAKERS = {
    "bert": tiny_bert,
    "electra": tiny_electra,
    "roberta": tiny_roberta,
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
}
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
}
FEEDFORWARD = {
    "bert": ("output.dense",),
    "roberta": ("output.dense",),
    "llama": ("down_proj",),
    "gpt2": ("mlp.c_proj",),
}
NO_TRANSPOSED = ("bert", "roberta", "llama")
"""The bases whose linear layers are torch's own."""
SMALL: dict[str, dict[str, Any]] = {
    "pissa": {"rank": 2, "alpha": 4.0},
    "olora": {"rank": 2, "alpha": 4.0},
    "peanut": {"rank": 2},
    "beft": {},
    "loha": {"rank": 2, "alpha": 4.0},
    "lokr": {"rank": 2, "alpha": 4.0},
    "hira": {"rank": 2},
    "gralora": {"rank": 4, "alpha": 8.0},
    "glora": {"rank": 2},
    "delora": {"rank": 2, "strength": 2.0},
    "miss": {"rank": 4},
    "vblora": {"rank": 2, "vectors": 8, "length": 4},
    "uni-lora": {"rank": 2, "size": 40},
    "randlora": {"rank": 8, "alpha": 16.0},
    "oft": {"block": 4},
    "hra": {"rank": 2},
    "road": {"group": 4},
    "fourierft": {"entries": 10},
    "waveft": {"entries": 10},
    "c3a": {"block": 4},
    "shira": {"rank": 2},
}
"""Kinds of linear layers, small."""


def adapter(kind: str, base: str, **changes: Any) -> dict[str, Any]:
    """The ``[adapter]`` table of a kind ('dora' and 'rslora' are LoRA with that flag)."""
    if kind in ("prompt", "prefix"):
        return {"kind": kind, "tokens": 3, **changes}
    if kind == "ia3":
        both = (*TARGETS[base], *FEEDFORWARD[base])
        return {"kind": "ia3", "target_modules": both, "feedforward_modules": FEEDFORWARD[base], **changes}
    if kind == "lora-sb":
        return {"kind": "lora-sb", "rank": 4, "target_modules": TARGETS[base], **changes}
    if kind in ("ln-tuning", "bitfit"):
        return {"kind": kind, **changes}
    if kind == "adaption-prompt":
        return {"kind": kind, "tokens": 3, **changes}
    if kind in SMALL:
        return {"kind": kind, "target_modules": TARGETS[base], **SMALL[kind], **changes}
    if kind == "vera":
        return {"kind": "vera", "rank": 4, "target_modules": TARGETS[base], **changes}
    if kind in ("p-tuning", "p-tuning-lstm"):
        encoder = "lstm" if kind.endswith("lstm") else "mlp"
        return {"kind": "p-tuning", "tokens": 3, "hidden_size": 8, "encoder": encoder, **changes}
    flags = {} if kind == "lora" else {kind: True}
    return {"kind": "lora", "rank": 2, "alpha": 4.0, "target_modules": TARGETS[base], **flags, **changes}


def federation(folder: Path, kind: str, base: str, table: dict[str, Any], **changes: Any) -> LoadedFederation:
    """A federation over ``folder/base``, which is written if absent."""
    if not (folder / base).is_dir():
        MAKERS[base](folder / base)
    data: dict[str, Any] = {"kind": "causal-lm", "path": "x", "partition": {"kind": "iid", "clients": 2}}
    if kind != "causal-lm":
        data |= {"kind": "classification", "labels": LABELS}
    settings: dict[str, Any] = {
        "federation": {"name": "test", "rounds": 1, "seed": 7},
        "model": {"kind": kind, "path": base},
        "adapter": table,
        "data": data,
        "training": {"kind": "backprop"},
    }
    return LoadedFederation(Federation.model_validate({**settings, **changes}), folder)


def adapted(loaded: LoadedFederation, *, seed: int = 0) -> AdaptedModel:
    """The federation's model."""
    outputs = task_of(loaded.settings.data).outputs
    base = load_base(loaded.settings.model, loaded.folder, labels=outputs)
    return AdaptedModel.build(loaded, base, key=Key.root(seed))


def examples(count: int, *, language_model: bool, seed: int = 0) -> list[Example]:
    """Random examples of 4 to 12 tokens; a language model's first two tokens have no loss."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = rng.integers(5, 140, rng.integers(4, 13)).astype(np.int32)
        targets = np.array([tokens[0] % len(LABELS)], dtype=np.int64)
        if language_model:
            targets = tokens.astype(np.int64)
            targets[:2] = IGNORED
        found.append(Example(tokens, targets, by_token=language_model))
    return found
