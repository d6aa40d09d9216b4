"""One cell of the support table, tried to the end: :class:`Workshop`.

Each is a federation of two clients over a small random model: both take a step from the same state on rows
of their own, twice, the mean is exported, and the code of the export's README must give the same logits in
plain PEFT. What Headwater refuses is refused with its own words; anything else that goes wrong is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from headwater.adapters.base import Base, load_base
from headwater.adapters.export import export
from headwater.adapters.model import AdaptedModel
from headwater.adapters.targets import linear_modules
from headwater.adapters.trial import try_model
from headwater.data.table_row import TableRow
from headwater.errors import HeadwaterError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Batch, collate
from headwater.tasks.table import task_of
from tests.data.toys import table
from tests.support import federations
from tests.support.architectures import DECODERS, ENCODER_DECODERS, build
from tests.support.model_cells import run_readme
from tests.support.support_plan import Cell
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer

STEP = 0.5
MOST = 300
"""Characters of a refusal that are kept: some list what there is."""
MAX_TOKENS = 64
_TEXTS = ("good movie", "bad movie", "the good was not", "not the movie")
_LABELS = {"labels": ("no", "yes")}
_QA = {"text": ["good"], "answer_start": [4]}
DATA: Mapping[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "classification": (_LABELS, [{"label": ("no", "yes")[n % 2]} for n in range(4)]),
    "regression": ({}, [{"target": n / 2} for n in range(4)]),
    "multi-label": (_LABELS, [{"labels": ["no", "yes"][: n % 3]} for n in range(4)]),
    "token-classification": (
        {"labels": ("O", "B-X", "I-X")},
        [{"tokens": text.split(), "tags": ["B-X", "I-X", "O", "O"][: len(text.split())]} for text in _TEXTS],
    ),
    "extractive-qa": (
        {"stride": 2},
        [
            {"question": q, "context": f"the good movie {q}", "answers": _QA}
            for q in ("what", "not", "was", "x")
        ],
    ),
    "masked-lm": ({"hidden": 0.5}, [{}] * 4),
    "seq2seq": ({}, [{"target": text[::-1]} for text in _TEXTS]),
    "causal-lm": ({}, [{}] * 4),
    "instruction": ({}, [{"prompt": text, "answer": text[::-1]} for text in _TEXTS]),
}
"""``[data]`` of each task, and rows of four texts: two for each client."""


@dataclass
class Workshop:
    """Bases below ``folder``, each written once, and loaded once for cells that follow one another."""

    folder: Path
    _kept: tuple[object, Base | HeadwaterError] | None = field(default=None, init=False)

    def outcome(self, cell: Cell) -> str | None:
        """None: it works to the end. Otherwise the words with which Headwater refuses it.

        Raises:
            Exception: neither; what is broken in silence is an AssertionError.
        """
        try:
            model = self._open(cell)
            if try_model(model, max_tokens=MAX_TOKENS) is None:
                raise AssertionError("try_model returns notices")
            batches = clients(model)
        except HeadwaterError as error:
            return str(error).replace(f"{path_of(self.folder, cell).parent}/", "")[:MOST]
        state = trained(model, batches)
        out = self.folder / "out"
        export(model, state, out, card={})
        require_same(model, state, out)
        return None

    def _open(self, cell: Cell) -> AdaptedModel:
        path = path_of(self.folder, cell)
        if not path.is_dir():
            write(cell, path)
        data = {"kind": cell.data, "path": "x", "partition": {"kind": "iid", "clients": 2}}
        changes = {
            "model": {"kind": cell.model, "path": str(path)},
            "data": {**data, **DATA[cell.data][0], "max_tokens": MAX_TOKENS},
        }
        plain = federations.federation(path.parent, cell.model, path.name, {"kind": "lora"}, **changes)
        base = self._base(plain.settings.model, path, task_of(plain.settings.data).outputs)
        table = adapter(cell.adapter, base)
        loaded = federations.federation(path.parent, cell.model, path.name, table, **changes)
        return AdaptedModel.build(loaded, base, key=Key.root(0))

    def _base(self, settings: Any, path: Path, outputs: tuple[str, ...] | None) -> Base:
        """As :func:`load_base` gives it: a copy, since PEFT puts its layers into what it gets."""
        wanted = (str(path), settings.kind, outputs)
        if self._kept is None or self._kept[0] != wanted:
            found: Base | HeadwaterError
            try:
                found = load_base(settings, path.parent, labels=outputs)
            except HeadwaterError as error:
                found = error
            self._kept = wanted, found
        if isinstance(self._kept[1], HeadwaterError):
            raise self._kept[1]
        return copy.deepcopy(self._kept[1])


def path_of(folder: Path, cell: Cell) -> Path:
    """Where the cell's base lies: masked models need other files than their encoders."""
    return folder / ("masked" if cell.data == "masked-lm" else "plain") / cell.architecture


def write(cell: Cell, path: Path) -> None:
    """The base's folder."""
    name = cell.architecture
    if name in DECODERS:
        build(name, path, tokenizer=byte_tokenizer(CHAT_TEMPLATE))
    elif name in ENCODER_DECODERS:
        build(name, path, tokenizer=byte_tokenizer(None, ends=True))
    else:
        make = AutoModelForMaskedLM if cell.data == "masked-lm" else None
        build(name, path, tokenizer=_pairs(word_tokenizer(mask=True)), make=make)


def _pairs(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def adapter(kind: str, base: Base) -> dict[str, Any]:
    """``[adapter]``: of layers, every linear module of the layers."""
    layers = [n for n in linear_modules(base.model) if any(part.isdigit() for part in n.split("."))]
    targets = tuple(sorted({n.rpartition(".")[2] for n in layers})) or ("none",)
    if kind == "ia3":
        return {"kind": kind, "target_modules": targets}
    found = federations.adapter(kind, "bert")
    return {**found, "target_modules": targets} if "target_modules" in found else found


def clients(model: AdaptedModel) -> list[Batch]:
    """A batch of two rows for each of two clients, read as the task reads them."""
    settings = model.task.settings
    _, targets = DATA[settings.kind]
    rows = [{"text": text, **target} for text, target in zip(_TEXTS, targets, strict=True)]
    whole = table(rows)
    read = [
        example
        for n in range(len(rows))
        for example in model.task.examples(TableRow(whole, n, settings), model.base.tokenizer)
    ]
    half = len(read) // 2
    return [collate(part, model.base.tokenizer.pad) for part in (read[:half], read[half:])]


def trained(model: AdaptedModel, batches: list[Batch]) -> AdapterState:
    """The state after two rounds of a step of each client: the mean of theirs, each time."""
    start = state = model.initial_state()
    for _ in range(2):  # a product of zeros moves one of its factors first
        found = [stepped(model, state, batch) for batch in batches]
        state = sum(found[1:], found[0]) * (1 / len(found))
    assert state.isfinite(), "a step gives NaN or infinity"
    adapter = [spec.name for spec in model.spec if spec.role != "head"]
    assert any(not torch.equal(state[n], start[n]) for n in adapter), "the adapter stays as it started"
    return state


def stepped(model: AdaptedModel, state: AdapterState, batch: Batch) -> AdapterState:
    """A client's state after one step on ``batch``."""
    model.load(state)
    parameters = [p for _, p in model.parameters()]
    with model.training():
        loss = model.loss(batch)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert bool(torch.isfinite(loss)), "the loss is not finite"
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= STEP * gradient / gradient.norm().clamp(min=1.0)
    return model.read()


def require_same(model: AdaptedModel, state: AdapterState, out: Path) -> None:
    """The code of the export's README, in plain PEFT, and ours."""
    names = run_readme(out, answer=1)
    tokens, mask = names["tokens"], names["mask"]
    model.load(state)
    targets = model.task.any_targets(tokens, mask)
    with torch.no_grad():
        ours = model.forward(Batch(tokens, mask, targets)).logits[0].float()
        if "logits" in names:
            theirs = names["logits"].detach()[0]
        else:  # its README asks an encoder-decoder for an answer; a pass over one has the numbers
            theirs = names["model"](input_ids=tokens, attention_mask=mask, labels=targets).logits[0].float()
    theirs = theirs[-ours.shape[0] :] if ours.dim() > 1 else theirs
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-3)
    model.load(model.initial_state())
    with torch.no_grad():
        before = model.forward(Batch(tokens, mask, targets)).logits[0].float()
    assert not torch.equal(before, ours), "training changes no output"
