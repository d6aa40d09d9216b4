"""A tiny federation that computes with all that may round otherwise on another processor: :func:`federation`.

Its base model's weights are made of integers, so that the process that writes them may be of any mode.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from tests.support.runs import tiny_federation
from tests.support.tiny_models import word_tokenizer

OWNERS = {"ann": 24, "ben": 24}


def federation(folder: Path) -> Path:
    """Training, a Dirichlet partition (gamma draws) and products merged by SVDs, in mode ``portable``."""
    file = tiny_federation(
        folder,
        owners=OWNERS,
        federation={"name": "golden", "rounds": 2, "bits": "portable"},
        data={"partition": {"kind": "dirichlet", "clients": 3, "alpha": 1.0}},
        codec={"up": {"kind": "compeft", "format": 1, "density": 0.2, "error_feedback": False}},
        strategy={"kind": "mean", "space": "product"},
        evaluation={"min_client_examples": 1},
    )
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=128,
    )
    model = BertModel(config)
    draw = np.random.Generator(np.random.Philox(key=15))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            whole = draw.integers(-128, 128, parameter.shape).astype(np.float32)
            parameter.copy_(torch.from_numpy(whole / 1024 + ("LayerNorm.weight" in name)))
    model.save_pretrained(folder / "bert")
    return file


def state_of(file: Path, out: Path, around: Mapping[str, str], *changes: str) -> str:
    """SHA-256 of the last round's state, of ``headwater simulate`` in a process of its own.

    Args:
        file: of the federation.
        out: the run's folder.
        around: variables that the process finds.
        changes: ``table.key=value``.
    """
    settings = [part for change in changes for part in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "headwater", "simulate", file, "--out", out, "--quiet", *settings],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **around},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return str(json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])["state_sha256"])
