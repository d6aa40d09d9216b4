"""Small adapters without a base, and what is expected of a merge that refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import headwater
from headwater.errors import HeadwaterError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULES = ("layers.0.q_proj", "layers.0.v_proj")


def adapter(
    folder: Path, seed: int = 0, *, modules=MODULES, rows=6, columns=5, rank=2, notes=None, **config
) -> Path:
    """A small LoRA adapter, or one that ``config`` makes something else."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    save_file(
        {
            f"base_model.model.{module}.lora_{letter}.weight": draw.standard_normal(shape).astype("<f4")
            for module in modules
            for letter, shape in (("A", (rank, columns)), ("B", (rows, rank)))
        },
        folder / WEIGHTS,
    )
    full = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "base_model_name_or_path": "org/base", **config}
    (folder / CONFIG).write_text(json.dumps(full))
    if notes is not None:
        (folder / "headwater.json").write_text(json.dumps(notes))
    return folder


def refused(tmp_path: Path, folders, kind: type[HeadwaterError], *said: str, **options) -> None:
    """The merge ends in an error of ``kind`` that says all of ``said``; nothing else is in ``tmp_path``."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        headwater.merge(folders, **{"out": tmp_path / "out", **options})
    assert type(caught.value) is kind
    for text in said:
        assert text in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def edit(folder: Path, **values) -> Path:
    """Change the tensors of an adapter: by name, None to take one away."""
    tensors = load_file(folder / WEIGHTS)
    for name, value in values.items():
        (full,) = [key for key in tensors if key.endswith(name)]
        if value is None:
            del tensors[full]
        else:
            tensors[full] = value
    save_file(tensors, folder / WEIGHTS)
    return folder
