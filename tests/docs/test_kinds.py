"""What a kind is, its settings class says: nothing else in the package compares ``kind`` with a kind's name.

Whoever adds a method, codec, adapter or rule then changes its settings, its file and one table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from headwater.config import adapter, assignment, codec, data, model, schedule, strategy, trackers, training
from headwater.config.settings import by_kind

PACKAGE = Path(__file__).parents[2] / "headwater"
FAMILIES = (
    model.Model, adapter.Adapter, data.Data, data.Partition, codec.Codec,
    strategy.Strategy, schedule.Schedule, training.Training, assignment.Assignment, trackers.Tracker,
)  # fmt: skip
KINDS = {kind for family in FAMILIES for kind in by_kind(family)}
ALLOWED: set[str] = set()
"""Files that may compare kinds all the same: the one table of a family. Tables are dictionaries so far."""


def comparisons(source: str) -> Iterator[int]:
    """Lines where something named ``kind`` is compared with, or matched against, the name of a kind."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_is_kind(side) for side in sides) and any(_names(side) & KINDS for side in sides):
                yield node.lineno
        elif isinstance(node, ast.Match) and _is_kind(node.subject):
            cases = [_names(value.value) for value in ast.walk(node) if isinstance(value, ast.MatchValue)]
            if KINDS.intersection(*[set().union(*cases)]):
                yield node.lineno


def _is_kind(node: ast.expr) -> bool:
    """``x.kind``, ``kind`` or ``x["kind"]``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "kind"
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "kind"
    return isinstance(node, ast.Name) and node.id == "kind"


def _names(node: ast.expr) -> set[object]:
    return {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}


def test_nothing_compares_a_kind():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in ALLOWED
        for line in comparisons(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"say it in a trait of the settings class (headwater/config/traits.py): {found}"


def test_a_comparison_would_be_seen():
    for source in (
        'x.kind == "spry"',
        'if t.training.kind in ("backprop", "noop"): pass',
        'kind != "vector"',
        'notes["kind"] == "causal-lm"',
        'match x.kind:\n    case "mean": pass',
    ):
        assert list(comparisons(source)) == [1], source
    assert not list(comparisons('event.kind == "round"'))


def test_every_kind_is_one_settings_class():
    assert all(issubclass(cls, BaseModel) for family in FAMILIES for cls in by_kind(family).values())
    assert {"lora", "dense", "mean", "backprop", "vector", "none", "buffered", "planner"} <= KINDS
