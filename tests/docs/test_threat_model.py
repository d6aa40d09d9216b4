"""docs/explanation/threat-model.md: what it says is refused together is refused, each word of the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.strategies.test_federated import federation

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "threat-model.md"
MODES: dict[str, dict[str, Any]] = {
    "masks": {"privacy": {"masks": True}, "cohort": {"min_clients": 3}},
    "noise": {
        "privacy": {"clip_l2": 0.5, "noise_multiplier": 1.0, "delta": 1e-5},
        "cohort": {"sampling": "poisson", "clients_per_round": 3, "population": 30},
        "evaluation": {"clients": False},
    },
}
SOUND: dict[str, Any] = {
    "strategy": {"kind": "mean", "weighting": "equal"},
    "codec": {"up": {"kind": "dense"}},
    "data": {
        "kind": "classification",
        "path": "d.jsonl",
        "test": "t.jsonl",
        "labels": ["a", "b"],
        "partition": {"kind": "iid", "clients": 30},
    },
}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "the server's noise": MODES["noise"],
    "rules": {"strategy": {"kind": "median"}},
    "`norm_bound`": {"strategy": {"norm_bound": 1.0}},
    "products": {"strategy": {"space": "product"}},
    "`[contribution]`": {"contribution": {"kind": "shapley"}},
    "EF21": {"codec": {"up": {"kind": "compeft", "error_feedback": "ef21"}}},
    "SCAFFOLD": {
        "strategy": {"control_variates": True},
        "training": {"kind": "backprop", "optimizer": "sgd"},
    },
    "buffered rounds": {"schedule": {"kind": "buffered", "buffer": 3}},
    "`padding`": {"privacy": {"padding": "padme"}},
    "fewer than 3 clients": {"cohort": {"min_clients": 2}},
    "weights by examples": {"strategy": {"weighting": "examples"}},
    "`[methods]`": {"methods": {"small": {"training": {"kind": "backprop"}, "rank": 1}},
                    "assignment": {"kind": "shares", "shares": {"default": 0.5, "small": 0.5}}},
}  # fmt: skip
ELSEWHERE = {"edges"}
"""Not of the file alone: tests/strategies, tests/edge."""


def table() -> list[tuple[str, str]]:
    """Mode and what is refused with it."""
    text = PAGE.read_text(encoding="utf-8").partition("## What is refused together")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [(first.strip(), other) for first, other, _ in cells if first.strip() in MODES]
    return [(mode, word.strip()) for mode, words in rows for word in re.split("[,;]", words)]


def build(mode: str, changes: dict[str, dict[str, Any]]) -> None:
    """Load the mode's settings with these changes of tables."""
    tables = {name: dict(value) for name, value in {**SOUND, **MODES[mode]}.items()}
    for name, value in changes.items():
        tables[name] = {**tables.get(name, {}), **value}
    federation(**tables)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_accepted_by_itself(mode: str) -> None:
    build(mode, {})


@pytest.mark.parametrize(("mode", "word"), table())
def test_what_is_refused_together_is_refused_and_named(mode: str, word: str) -> None:
    if word in ELSEWHERE:
        return
    named = {
        "masks": r"privacy\.masks needs|no privacy\.masks",
        "noise": r"noise in \[privacy\] needs|needs .* no privacy\.clip_l2",
    }
    with pytest.raises(ValidationError, match=named[mode]):
        build(mode, CHANGES[word])


def test_the_table_is_there() -> None:
    assert len(table()) > 15
    assert {word for _, word in table()} == CHANGES.keys() | ELSEWHERE
