"""The table of rules under attack says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks" / "results" / "robust.json").read_text(encoding="utf-8"))


def shown(split: str) -> dict[tuple[str, str], str]:
    """The page's cells by rule and attack."""
    page = (ROOT / "results" / "benchmarks.md").read_text(encoding="utf-8")
    section = page.split("## Rules under attack")[1].split("\n## ")[0]
    tables = [part for part in section.split("\n\n") if part.startswith("| rule |")]
    lines = [
        line.strip("|").split("|") for line in tables[["iid", "dirichlet 0.5"].index(split)].splitlines()
    ]
    names = [cell.strip() for cell in lines[0]]
    return {
        (line[0].strip(" `"), name): cell.strip()
        for line in lines[2:]
        for name, cell in zip(names[1:], line[1:], strict=True)
    }


@pytest.mark.parametrize("split", sorted({run["split"] for run in FOUND["runs"]}))
def test_each_cell_is_the_mean_of_its_runs(split: str) -> None:
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for run in FOUND["runs"]:
        if run["split"] == split:
            runs.setdefault((run["rule"], run["attack"]), []).append(run)
    cells = shown(split)
    for where, own in runs.items():
        known = [what for what in ("accuracy", "trigger") if what in own[0]]
        means = (f"{100 * sum(run[what] for run in own) / len(own):.1f}" for what in known)
        assert cells[where] == "; ".join(means), where
    assert {where for where, cell in cells.items() if cell != "–"} == runs.keys()
