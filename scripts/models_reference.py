"""Write results/models.md: what each architecture can do, found by trying. ``--check`` only compares.

Every cell is tried to the end on a small random model (tests/support/model_cells.py). Minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.architectures import ARCHITECTURES, build
from tests.support.model_cells import ADAPTERS, FEWER, KINDS, REASONS, outcome

PAGE = Path(__file__).parents[1] / "results" / "models.md"

HEAD = """\
# Which models

<!-- Written by scripts/models_reference.py, which tries every cell: change it there. -->

When a run opens its model, base and adapter are tried: a few rows forward and backward, the state out and in
again as PEFT saves it, the longest row's positions. It takes a second, and what cannot work is refused then,
with what can be used instead. The same trial, a step of training, and an export whose own README code must
give the same numbers in plain PEFT made this table, on small random models of each type (`model_type` in
config.json). LoRA and VeRA have `target_modules = ["all-linear"]`, IA3 every linear module of the layers.

Three laws hold for every **yes**: a row's output does not depend on its batch, its padding or its
neighbours; a causal model does not see later tokens; what PEFT loads from the export is what was trained.

"""


SOME = ("bert", "deberta-v2", "gemma3_text", "gpt2", "llama", "qwen3_moe", "roberta", "t5")
"""Architectures on which the later kinds are tried."""


def row(name: str, adapters: tuple[str, ...] = ADAPTERS) -> str:
    """The table's row of one architecture."""
    return f"| `{name}` | {' | '.join(cell(name, kind, adapters) for kind in KINDS)} |"


def cell(name: str, kind: str, adapters: tuple[str, ...] = ADAPTERS) -> str:
    """What one architecture does as one kind of model: a word for each adapter, or one for all."""
    with tempfile.TemporaryDirectory() as folder:
        build(name, Path(folder) / name)
        found = [outcome(Path(folder), name, kind, adapter).word for adapter in adapters]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def table(names: Sequence[str], adapters: tuple[str, ...]) -> list[str]:
    """The lines of a table: a row for each architecture."""
    order = ", ".join(adapters)
    lines = [f"| type | {' | '.join(f'`{kind}`: {order}' for kind in KINDS)} |", "|---|---|---|---|"]
    for name in names:
        lines.append(row(name, adapters))
        print(lines[-1], file=sys.stderr)
    return lines


def page() -> str:
    """The whole page."""
    lines = table(ARCHITECTURES, ADAPTERS)
    fewer = table(SOME, FEWER)
    meanings = "\n".join(f"| {word} | {meaning} |" for word, (_, meaning) in REASONS.items())
    return (
        HEAD
        + "\n".join(lines)
        + "\n\nOne word in a cell stands for all four adapters.\n\n"
        + "VeRA and P-tuning, on some of them:\n\n"
        + "\n".join(fewer)
        + "\n\n| refused as | because |\n|---|---|\n"
        + meanings
        + "\n"
    )


if __name__ == "__main__":
    found = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == found else f"{PAGE} is not what the models do")
    PAGE.write_text(found, encoding="utf-8")
