"""One cell of the table of models: an architecture, a ``model.kind`` and an adapter, tried to the end."""

from __future__ import annotations

import contextlib
import copy
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwater.adapters.base import Base, load_base
from headwater.adapters.export import export
from headwater.adapters.model import AdaptedModel
from headwater.adapters.targets import linear_modules
from headwater.adapters.trial import try_model
from headwater.errors import HeadwaterError
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example, collate
from tests.support import federations
from tests.support.readme_code import readme_code

KINDS = ("encoder", "sequence-classification", "causal-lm")
ADAPTERS = ("lora", "ia3", "prompt", "prefix")
FEWER = ("vera", "p-tuning")
"""Kinds that are tried on some architectures only."""
REASONS = {
    "none": ("Unrecognized configuration class", "transformers has no such model of this architecture"),
    "both ways": ("is_decoder", "it reads in both directions, so it is no causal model"),
    "part": (
        "has no place for, such as",
        "this kind would use a part of the model only, such as its decoder",
    ),
    "head": (
        "frozen",
        "a head of several layers starts fresh, and PEFT saves one layer of it with this adapter",
    ),
    "lacks": ("missing or of another shape", "its pretraining has no head for this kind"),
    "padding": ("its padding and its neighbours", "a row's output depends on its padding"),
    "no place": ("no place for it", "PEFT's virtual tokens do not reach this architecture"),
    "modules": (
        "every linear layer to be adapted",
        "PEFT leaves layers out of `all-linear`: name the modules",
    ),
    "mamba": (
        "incompatible with Mamba",
        "`all-linear` names a layer that Mamba's kernel passes by: name others",
    ),
    "ignored": ("this architecture ignores", "its layers are no linear modules"),
    "decoder": ("model.kind 'encoder'", "an encoder-decoder, which is no encoder alone"),
    "tensors": ("unsaved", "PEFT would train a tensor of the base that it does not save"),
    "heads": ("num_attention_heads", "it has no attention for a prefix"),
    "no target": ("names of linear modules", "it has no linear modules in its layers"),
}
"""Word in the table: part of the error, and what it means."""


@dataclass(frozen=True)
class Cell:
    """What came out: ``word`` is "yes" or a key of REASONS; ``message`` the whole error."""

    word: str
    message: str = ""


def outcome(folder: Path, name: str, kind: str, adapter: str) -> Cell:
    """Open, try, train a step, export, and run the code of the export's own README in plain PEFT.

    Raises:
        Exception: anything that is neither success nor an error of ours.
    """
    try:
        model = _open(folder, name, kind, adapter)
        try_model(model, max_tokens=32)
    except HeadwaterError as error:
        found = [word for word, (part, _) in REASONS.items() if part in str(error)]
        return Cell(found[0] if found else f"? {error}", str(error))
    tokens = model.base.tokenizer.encode("a text", 32)
    target = tokens if model.language_model else [1]
    batch = collate(
        [Example(np.array(tokens, dtype=np.int32), np.array(target, dtype=np.int64), model.language_model)],
        model.base.tokenizer.pad,
    )
    state = model.initial_state()
    for _ in range(2):  # a product of zeros moves one of its factors first
        model.load(state)
        gradients = torch.autograd.grad(
            model.loss(batch), [p for _, p in model.parameters()], allow_unused=True
        )
        with torch.no_grad():
            for (_, parameter), gradient in zip(model.parameters(), gradients, strict=True):
                if gradient is not None:
                    parameter -= 0.5 * gradient
        state = model.read()
    assert not torch.equal(state.vector(), model.initial_state().vector())
    export(model, state, folder / "out", card={})
    with torch.no_grad():
        ours = model.forward(batch).logits[0]
    theirs = run_readme(folder / "out")["logits"].detach()[0][-ours.shape[0] :]
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-3)
    return Cell("yes")


def run_readme(adapter: Path, *, answer: int = 8) -> dict[str, Any]:
    """The names that the code of an export's README leaves behind, run in the adapter's folder."""
    names: dict[str, Any] = {}
    with contextlib.chdir(adapter), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(readme_code(adapter, answer=answer), str(adapter / "README.md"), "exec"), names)
    return names


@lru_cache(maxsize=1)  # an adapter after the other is tried on it
def _loaded(path: str, model: Any, folder: Path, labels: tuple[str, ...] | None) -> Base | HeadwaterError:
    try:
        return load_base(model, folder, labels=labels)
    except HeadwaterError as error:
        return error


def _base(path: str, model: Any, folder: Path, labels: tuple[str, ...] | None) -> Base:
    """As :func:`load_base` gives it: a copy, since PEFT puts its layers into what it gets."""
    found = _loaded(path, model, folder, labels)
    if isinstance(found, HeadwaterError):
        raise found
    return copy.deepcopy(found)


def _open(folder: Path, name: str, kind: str, adapter: str) -> AdaptedModel:
    labels = None if kind == "causal-lm" else ("no", "yes")
    path = str(folder / name)
    tables: dict[str, dict[str, Any]] = {
        "lora": {"kind": "lora", "rank": 2, "target_modules": ("all-linear",)},
        "prompt": {"kind": "prompt", "tokens": 3},
        "prefix": {"kind": "prefix", "tokens": 3},
        "ia3": {"kind": "ia3", "target_modules": ("none",)},
        "vera": {"kind": "vera", "rank": 4, "target_modules": ("all-linear",)},
        "p-tuning": {"kind": "p-tuning", "tokens": 3, "hidden_size": 8},
    }
    loaded = federations.federation(folder, kind, name, tables[adapter], model={"kind": kind, "path": path})
    settings = loaded.settings
    assert settings.model.kind != "vector"
    base = _base(path, settings.model, folder, labels)
    if adapter == "ia3":
        layers = [n for n in linear_modules(base.model) if any(part.isdigit() for part in n.split("."))]
        targets = tuple(sorted({n.rpartition(".")[2] for n in layers})) or ("none",)
        changed = settings.adapter.model_copy(update={"target_modules": targets})
        loaded = loaded.__class__(settings.model_copy(update={"adapter": changed}), loaded.folder)
    return AdaptedModel.build(loaded, base, key=Key.root(0))
