"""Adapters over a tiny base, and rows to go by, for the tests of rules that look at rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headwater.adapters.export import export
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.merge import Merge
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import DataRule
from headwater.training.merging.network import RowsNetwork
from tests.laws.offline_rule_laws import Floats
from tests.support import federations


def adapters(
    folder: Path, count: int = 2, *, base: str = "bert", kind: str = "sequence-classification", **table: Any
) -> list[Path]:
    """Adapters a0, a1, … of a random base, far enough from it to change its answers."""
    found = []
    for index in range(count):
        rank = {"rank": 2 + index % 2, "alpha": 4.0} | table
        loaded = federations.federation(folder, kind, base, federations.adapter("lora", base, **rank))
        model = federations.adapted(loaded, seed=index)
        start = model.initial_state()
        noise = torch.randn(start.spec.numel, generator=torch.Generator().manual_seed(index))
        state = type(start).from_vector(start.spec, start.vector() + 0.3 * noise)
        export(model, state, folder / f"a{index}", card={})
        found.append(folder / f"a{index}")
    return found


def rows(path: Path, count: int = 9, *, start: int = 0, labelled: bool = True) -> Path:
    """Texts of several lengths, with one of three labels each."""
    lines = []
    for i in range(start, start + count):
        row = {"text": f"{'abcdef'[i % 6] * (1 + i % 5)} row {i}"}
        lines.append(row | ({"label": federations.LABELS[i % 3]} if labelled else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path


def network(folders: Sequence[Path], base: Path) -> RowsNetwork:
    return RowsNetwork.open(Adapters.open(folders, None), str(base))


def changes(network: RowsNetwork, rule: DataRule, measured: Measured, **recipe: Any) -> dict[str, Floats]:
    """What the merged adapter changes, as whole matrices; other tensors as they are."""
    merge = Merge(network.adapters, Recipe(rule, **recipe), measured)
    return {name: weight.b @ weight.a for name, weight in merge.modules()} | dict(merge.plain())


def own(network: RowsNetwork, index: int) -> dict[str, Floats]:
    """The same of one adapter."""
    found = {}
    for module in network.adapters.modules:
        b, a = network.adapters.folders[index].factors(module)
        found[module] = b @ a
    return found | {name: network.adapters.value(index, name) for name in network.adapters.plain}


def mean(network: RowsNetwork) -> dict[str, Floats]:
    """The same of the adapters' mean."""
    all_ = [own(network, i) for i in range(len(network.adapters))]
    return {name: sum(one[name] for one in all_) / len(all_) for name in all_[0]}


def quiet(text: str) -> None:
    """Progress that nobody sees."""
