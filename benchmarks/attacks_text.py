"""Which tokens of a text a server reads out of one update of the first layer's LoRA: :func:`text_attacks`.

SmolLM2's first layer and head, LoRA on q and v, rows of presidents' speeches. Candidates are all 49,152
tokens: the layer's input is the normed embedding, whatever the order. *read*: what lies within 1 % of the
span of A's rows (of B's, through A, where A stands still) is said to be there; *ranked*: as many tokens as
there are, by energy.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwater.compression.table import codec_for
from headwater.config import load_federation
from headwater.config.codec import CompeftCodec, DenseCodec
from headwater.config.privacy import ExamplePrivacy
from headwater.privacy.audit.span import directions, energies, residuals
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example
from headwater.training.cohort import TrainTask
from headwater.training.context import TrainingContext

CACHE = Path(__file__).parents[1] / ".cache" / "headwater"
NEAR, RANK = 0.01, 8
SGD, ADAM = {"optimizer": "sgd", "learning_rate": 0.1}, {"optimizer": "adamw", "learning_rate": 1e-3}
CASES: Mapping[str, dict[str, Any]] = {
    "first round (B = 0), sgd, 1 step": {"fresh": True, **SGD},
    "later round, sgd, 1 step": SGD,
    "later round, sgd, 8 steps": {**SGD, "max_steps": 8},
    "later round, adamw, 1 step": ADAM,
    "later round, adamw, 8 steps": {**ADAM, "max_steps": 8},
    "sgd, compeft 0.05": {**SGD, "compeft": True},
    "adamw, 8 steps, compeft 0.05": {**ADAM, "max_steps": 8, "compeft": True},
    "sgd, row noise z 0.1": {**SGD, "z": 0.1},
    "sgd, row noise z 1": {**SGD, "z": 1.0},
    "B only, sgd, 1 step": {**SGD, "b_only": True},
}
SHAPES = ((1, 7), (1, 15), (4, 15))
"""Rows, and tokens of each that the model reads."""


def text_attacks(*, small: bool) -> list[dict[str, Any]]:
    """Shares of a row's distinct tokens that are read, and of those said that are right."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = AutoModelForCausalLM.from_pretrained(
            CACHE / "smollm2", num_hidden_layers=1, dtype=torch.float32
        )
        with torch.no_grad():
            layer = whole.model.layers[0]
            vocabulary = layer.input_layernorm(whole.model.embed_tokens.weight).numpy()
        whole.save_pretrained(folder)
        AutoTokenizer.from_pretrained(CACHE / "smollm2").save_pretrained(folder)
        file = folder / "federation.toml"
        file.write_text(tomli_w.dumps({**FILE, "model": {"kind": "causal-lm", "path": str(folder)}}))
        context = TrainingContext.open(load_federation(file))
        speeches = sorted((CACHE / "presidents" / "train").glob("*"))
        for rows, tokens in SHAPES[:1] if small else SHAPES:
            texts = [text_of(context, path, rows, tokens) for path in speeches[: 1 if small else 2]]
            for name, case in CASES.items():
                tried = [attack(context, own, case, vocabulary) for own in texts]
                mean = {key: float(np.mean([one[key] for one in tried])) for key in tried[0]}
                found.append({"case": name, "rows": rows, "tokens": tokens, "texts": len(texts), **mean})
                print(found[-1], flush=True)
    return found


def text_of(context: TrainingContext, path: Path, rows: int, tokens: int) -> list[Example]:
    """The first windows of a speech; the last token of each is only predicted."""
    ids = np.array(context.tokenizer.encode_plain(path.read_text()[:4000]), np.int32)
    size = tokens + 1
    parts = [ids[i * size : (i + 1) * size] for i in range(rows)]
    return [Example(part, np.concatenate([part[1:], [-100]])) for part in parts]


def trained(
    context: TrainingContext, state: AdapterState, rows: list[Example], case: Mapping[str, Any]
) -> AdapterState:
    """One owner's update."""
    changes: dict[str, Any] = {
        "optimizer": case["optimizer"], "learning_rate": case["learning_rate"],
        "max_steps": case.get("max_steps", 1), "batch_size": len(rows),
    }  # fmt: skip
    if z := case.get("z"):
        changes["privacy"] = ExamplePrivacy(noise_multiplier=z, delta=1e-4, noise="reproducible")
    training = context.loaded.settings.training.model_copy(update=changes)
    plan = ClientPlan(training, DenseCodec(kind="dense"))
    (result,) = context.trainer(training).train([TrainTask("a", state, rows, plan)], key=Key.root(0))
    assert result.error is None, result.error
    return result.delta


def attack(
    context: TrainingContext, rows: list[Example], case: Mapping[str, Any], vocabulary: np.ndarray
) -> dict[str, float]:
    """What is read of one update."""
    state = context.initial_state()
    if not case.get("fresh"):  # as earlier rounds left it: B is no longer zero
        draw = Key.root(5).numpy()
        moved = {
            spec.name: torch.from_numpy(
                draw.normal(0, 0.02, tuple(state[spec.name].shape)).astype(np.float32)
            )
            for spec in state.spec
            if "lora_B" in spec.name
        }
        state = AdapterState(state.spec, {s.name: state[s.name] + moved.get(s.name, 0.0) for s in state.spec})
    delta = trained(context, state, rows, case)
    if case.get("compeft"):
        codec = codec_for(CompeftCodec(kind="compeft", density=0.05))
        _, delta = codec.round_trip(delta, key=Key.root(1))
    names = [s.name for s in delta.spec.tensors]
    if case.get("b_only"):  # rows of B's gradient lie in the span of A·x
        pairs = zip(of(names, "lora_A"), of(names, "lora_B"), strict=True)
        each = [residuals(delta[b].numpy(), directions(vocabulary @ state[a].numpy().T)) for a, b in pairs]
        apart = np.max(each, axis=0)
        ranks = -apart
    else:
        stacked = np.concatenate([delta[a].numpy() for a in of(names, "lora_A")])
        apart = residuals(stacked, directions(vocabulary))
        ranks = energies(stacked, directions(vocabulary, centred=True))
    there = {int(t) for row in rows for t in row.tokens[:-1]}
    said = set(np.flatnonzero(apart < NEAR).tolist())
    if len(said) > len(vocabulary) // 2:  # everything lies in it: nothing is said
        said = set()
    top = set(np.argsort(-ranks)[: len(there)].tolist())
    return {
        "distinct": len(there),
        "read": len(said & there) / len(there),
        "right": len(said & there) / max(1, len(said)),
        "ranked": len(top & there) / len(there),
    }


def of(names: list[str], which: str) -> list[str]:
    return [name for name in names if which in name]


FILE: dict[str, Any] = {
    "federation": {"name": "text", "seed": 17, "rounds": 1, "threads": 1},
    "adapter": {"kind": "lora", "rank": RANK, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]},
    "data": {
        "kind": "causal-lm", "path": str(CACHE / "presidents" / "train"), "max_tokens": 64,
        "validation_fraction": 0.0, "partition": {"kind": "files"},
    },
    "training": {"kind": "backprop", "max_steps": 1, "batch_size": 4, "learning_rate": 1e-3},
}  # fmt: skip
