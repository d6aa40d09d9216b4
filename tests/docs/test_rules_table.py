"""The table of docs/reference/aggregation.md, "What goes with what", is what the code's traits say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from headwater.config.federation import Federation
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.strategies.rules import rule_in_round
from headwater.strategies.summing import why_no_sums
from tests.laws.aggregator_laws import lora_spec
from tests.strategies.test_federated import federation

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "aggregation.md"
SPEC = lora_spec(9, 7, 2)
TRUSTED = {"trusted": ["c0"]}


def rows() -> dict[str, list[str]]:
    """The table's cells by its first column."""
    text = PAGE.read_text(encoding="utf-8").partition("## What goes with what")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def accepted(strategy: dict[str, Any], **tables: Any) -> Federation | None:
    """The federation with this strategy; None where the file is refused."""
    cohort = {"min_clients": 5}
    try:
        return federation(strategy=strategy, cohort=cohort, codec={"up": {"kind": "dense"}}, **tables)
    except ValidationError:
        return None


def traits(strategy: dict[str, Any]) -> list[str]:
    """What the code says of a strategy: the table's columns in their order."""
    found = accepted(strategy)
    assert found is not None
    base = AdapterState.from_vector(SPEC, torch.ones(SPEC.numel))
    rule = rule_in_round(found.strategy, base, Key.root(0))
    few, many = rule.kept_bytes(SPEC, 10), rule.kept_bytes(SPEC, 1000)
    ranks = {"methods": {"small": {"training": {"kind": "backprop"}, "rank": 1}}}
    shares = {"assignment": {"kind": "shares", "shares": {"default": 0.5, "small": 0.5}}}
    buffered = {"schedule": {"kind": "buffered", "buffer": 5}}
    said = [
        few == many or rule.passes > 1,
        accepted(strategy, privacy={"masks": True}) is not None,
        found.strategy.linear,
        why_no_sums(found) is None,
        accepted(strategy, **ranks, **shares) is not None,
        accepted(strategy, **buffered) is not None,
    ]
    return ["yes" if one else "no" for one in said]


@pytest.mark.parametrize(
    ("row", "strategies"),
    [
        ("`mean`", [{"kind": "mean"}]),
        ("`mean`, space `product`", [{"kind": "mean", "space": "product"}]),
        ("`ties`", [{"kind": "ties"}]),
        ("`fisher`", [{"kind": "fisher"}]),
        ("`median`", [{"kind": "median"}]),
        ("`trimmed_mean`", [{"kind": "trimmed_mean"}]),
        (
            "`krum`, `multi_krum`, `geometric_median`",
            [{"kind": kind} for kind in ("krum", "multi_krum", "geometric_median")],
        ),
        (
            "the same in space `product`",
            [{"kind": kind, "space": "product"} for kind in ("krum", "multi_krum", "geometric_median")],
        ),
        ("`geometric_median`, `passes`", [{"kind": "geometric_median", "passes": 4}]),
        ("`fltrust`", [{"kind": "fltrust", **TRUSTED}]),
        ("`fltrust`, space `product`", [{"kind": "fltrust", "space": "product", **TRUSTED}]),
    ],
)
def test_a_row_is_what_the_code_says(row: str, strategies: list[dict[str, Any]]) -> None:
    for strategy in strategies:
        assert rows()[row] == traits(strategy), strategy


@pytest.mark.parametrize("kind", ["mean", "median", "trimmed_mean", "geometric_median", "ties"])
def test_a_screen_changes_what_its_row_says(kind: str) -> None:
    plain, screened = traits({"kind": kind}), traits({"kind": kind, "screen": {}})
    said = rows()["any rule with `screen`"]
    for column, (cell, before, now) in enumerate(zip(said, plain, screened, strict=True)):
        if cell == "as the rule" and column:
            assert now == before
        elif column not in (0, 2):  # memory: sketches of 8 KB a client; DP is no trait of a rule
            assert now == cell


def test_every_row_is_checked() -> None:
    names = [name for name in rows() if name]
    assert len(names) == 12
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(re.escape(name) and f'"{name}"' in source for name in names)
