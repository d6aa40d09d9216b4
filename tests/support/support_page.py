"""The support table as a page, and as the JSON that it is written from. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.support.peft_types import NOT_TAKEN, PARTLY, TAKEN
from tests.support.support_plan import (
    ARCHITECTURES,
    KINDS,
    ON_ONE,
    TASKS,
    Cell,
    cell,
    natural,
    planned,
)

YES, NOT_RUN = "✓", "·"
BAR = r"\|"
HEAD = """\
# What works with what

<!-- Written by scripts/support_table.py from results/support.json (`make support`): change it there. -->

{kinds} adapter kinds, {tasks} tasks, {architectures} architectures: {yes} cells work, {no} are refused{left}.
**✓** is a federation of two clients over a small random model: two steps each, their mean, an export whose
own README code gives the same logits in plain PEFT. A number is the reason for which a run refuses it as it
opens. Kinds of layers have every linear module of the layers as targets: where that is refused, fewer may do.

"""


def found_in(path: Path) -> dict[Cell, str]:
    """What came of each cell: empty where it works, else the error's words."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {Cell(*key.split(" ")): data["said"][n] for n, keys in enumerate(data["cells"]) for key in keys}


def written(found: Mapping[Cell, str]) -> str:
    """The JSON: what was said, and below ``cells`` to whom."""
    said = sorted(set(found.values()))
    cells = [sorted(" ".join(key) for key, text in found.items() if text == one) for one in said]
    return json.dumps({"said": said, "cells": cells}, indent=1, ensure_ascii=False) + "\n"


def reason(said: str) -> str:
    """A refusal's words without one model's names and numbers, so that refusals of one reason are one."""
    _, _, words = said.partition(": expected ")
    expected, _, got = (words or said).partition(", got ")
    expected = expected.partition(": ")[0].partition(", such as ")[0]
    got = got.partition(". ")[0].partition("<class")[0].partition(", such as")[0]
    short = f"{expected}, got {got}" if got else expected
    return re.sub(r"'[\w.-]+'|\b\d[\w.]*\b", "…", short).strip()


def page(found: Mapping[Cell, str]) -> str:
    """The whole page."""
    reasons: dict[str, int] = {}

    def mark(one: Cell) -> str:
        if one not in found:
            return NOT_RUN
        said = found[one]
        return str(reasons.setdefault(reason(said), len(reasons) + 1)) if said else YES

    parts = [
        "## Kinds and architectures\n\nEncoders classify, decoders go on, encoder-decoders answer.\n",
        _table(ARCHITECTURES, KINDS, lambda name, kind: mark(cell(name, natural(name), kind))),
        "## Tasks and architectures\n\nWith LoRA; rows of encoder-decoders are `sequence-classification`.\n",
        _table(ARCHITECTURES, TASKS, lambda name, task: mark(cell(name, task, "lora"))),
    ]
    names = [f"`{name}` {task}" for name, task in ON_ONE]
    by_name = dict(zip(names, ON_ONE, strict=True))
    parts += [
        "## Kinds and tasks\n\nOn one encoder, one decoder, one encoder-decoder.\n",
        _table(KINDS, names, lambda kind, shown: mark(cell(*by_name[shown], kind))),
    ]
    lines = "\n".join(f"{number}. {_shown(text)}" for text, number in reasons.items())
    done = [found[one] for one in planned() if one in found]
    left = len(planned()) - len(done)
    head = HEAD.format(
        kinds=len(KINDS),
        tasks=len(TASKS),
        architectures=len(ARCHITECTURES),
        yes=done.count(""),
        no=len(done) - done.count(""),
        left=f", {left} not tried ({NOT_RUN})" if left else "",
    )
    reasons_given = f"\n## Reasons\n\nWhat was expected, and what was found:\n\n{lines}\n"
    return head + "\n".join(parts) + reasons_given + _of_peft()


def _of_peft() -> str:
    """Every member of PEFT's enumeration, and what becomes of it."""
    shown = {name: ", ".join(f"`{kind}`" for kind in kinds) for name, kinds in TAKEN.items()}
    refused = {name: f"not taken: {why}" for name, why in NOT_TAKEN.items()}
    rows = sorted({**shown, **PARTLY, **refused}.items())
    lines = "\n".join(f"| `{name}` | {said.replace('|', BAR)} |" for name, said in rows)
    return f"\n## PEFT's kinds {{ #peft }}\n\n| `PeftType` | kind |\n|---|---|\n{lines}\n"


def _table(rows: Iterable[str], columns: Iterable[str], mark: Callable[[str, str], str]) -> str:
    columns = list(columns)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| `{row}` | {' | '.join(mark(row, column) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _shown(text: str) -> str:
    return re.sub(r"([<|*_])", r"\\\1", text)
