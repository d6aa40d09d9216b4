"""The trained head of a classifier and the federation's labels: :func:`match_head`.

A head that was trained before has an order of its own, in ``id2label`` of its configuration. Row k of its
last layer is moved to where the federation has the label of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from headwater.errors import ModelError

HeadMode = Literal["match", "in-order", "fresh"]


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """What becomes of the head in the files.

    Args:
        order: for each label of the federation, the row of the head that is its own; None: the head starts
            fresh, or has this order already.
        fresh: the head's last layer is drawn anew.
        notice: what the user should know; empty if nothing.
    """

    order: tuple[int, ...] | None
    fresh: bool
    notice: str = ""


def match_head(who: str, id2label: Mapping[int, str], labels: tuple[str, ...], mode: HeadMode) -> HeadPlan:
    """How a trained head serves ``labels``.

    Args:
        who: the base, for messages.
        id2label: the head's own names of its rows.
        labels: the federation's, in its order.
        mode: ``match`` by name; ``in-order`` takes row k for label k whatever it is called; ``fresh``.

    Raises:
        ModelError: as many labels, but names that do not match: shows both orders.
    """
    own = tuple(id2label[k] for k in sorted(id2label))
    if mode == "fresh":
        return HeadPlan(None, True, f"{who}: its head starts fresh, as model.head says")
    if len(own) != len(labels):
        if mode == "in-order":
            raise ModelError(
                "model.head 'in-order'", expected=f"as many labels as the head has: {_shown(own)}",
                got=_shown(labels), hint='Give as many, or set model.head = "fresh".',
            )  # fmt: skip
        return HeadPlan(
            None,
            True,
            f"{who}: its trained head has {len(own)} labels ({_shown(own)}) and data.labels has "
            f"{len(labels)}: the head starts fresh",
        )
    if mode == "in-order" or own == labels or len(own) == 1:  # one output is that of the one number
        return HeadPlan(None, False)
    rows = _rows_by_name(own)
    found = [rows.get(_plain(label)) for label in labels]
    order = tuple(row for row in found if row is not None)
    if len(set(order)) < len(labels):
        raise ModelError(
            f"data.labels and the trained head of {who}",
            expected=f"the head's own names, which are, in its order, {_shown(own)}",
            got=_shown(labels),
            hint='Name them as the head does, in any order. Or set model.head: "in-order" if label k is what '
            'the head\'s output k means, "fresh" to train a new head.',
        )
    if order == tuple(range(len(order))):
        return HeadPlan(None, False)
    return HeadPlan(order, False, f"{who}: its head's outputs ({_shown(own)}) are put in data.labels' order")


def last_layer(model: PreTrainedModel, outputs: int) -> frozenset[str]:
    """Names of the parameters of the head's last layer: the last one outside the body so wide.

    Raises:
        ModelError: no linear layer outside the body has as many outputs.
    """
    name, layer = _last_layer(model, outputs)
    return frozenset(f"{name}.{part}" for part, _ in layer.named_parameters(recurse=False))


def move_rows(model: PreTrainedModel, order: tuple[int, ...]) -> frozenset[str]:
    """Put the outputs of the head's last layer in ``order``, in place: for each new row, the old one.

    Returns:
        Names of the parameters that were changed.
    """
    _, layer = _last_layer(model, len(order))
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter.copy_(parameter[list(order)].clone())
    return last_layer(model, len(order))


def _last_layer(model: PreTrainedModel, outputs: int) -> tuple[str, nn.Linear]:
    body = f"{model.base_model_prefix}."
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == outputs and not name.startswith(body)
    ]
    if not found:
        raise ModelError(
            type(model).__name__,
            expected="a classifier whose last layer is linear, with an output for each label",
            got="none",
            hint='Use model.kind = "encoder".',
        )
    return found[-1]


def _rows_by_name(names: tuple[str, ...]) -> dict[str, int]:
    """Rows by plain name; names that differ in case alone belong to no row."""
    rows: dict[str, int] = {}
    twice = set[str]()
    for row, name in enumerate(names):
        plain = _plain(name)
        twice |= {plain} & rows.keys()
        rows[plain] = row
    return {name: row for name, row in rows.items() if name not in twice}


def _plain(name: object) -> str:
    return str(name).strip().casefold()


def _shown(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"{shown}, … {len(names)} in all" if len(names) > 8 else shown
