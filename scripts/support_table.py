"""Write docs/reference/support.md: adapter kinds, tasks and architectures, each cell found by trying.

``make support`` tries what results/support.json lacks, WORKERS at a time, and goes on where it was cut.
``--fresh`` tries all anew, ``--page`` writes the page alone. A cell takes a quarter of a CPU second.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.support_page import found_in, page, written  # noqa: E402  sys.path comes first
from tests.support.support_plan import (  # noqa: E402  likewise
    ARCHITECTURES,
    KINDS,
    ON_ONE,
    Cell,
    natural,
    planned,
)

FOUND = ROOT / "results" / "support.json"
PAGE = ROOT / "docs" / "reference" / "support.md"
BROKEN = "broken: "
WORKERS = int(os.environ.get("WORKERS", "2"))


def tried(cells: list[Cell]) -> dict[Cell, str]:
    """What comes of each: empty where it works, a refusal's words, or what broke."""
    import torch
    from transformers.utils import logging

    from tests.support.support_cells import Workshop

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        for cell in cells:
            try:
                found[cell] = workshop.outcome(cell) or ""
            except Exception as error:  # the page says it, and a test refuses the page
                found[cell] = f"{BROKEN}{type(error).__name__}: {str(error).strip()[:200]}"
    return found


def _order(one: Cell) -> tuple[object, ...]:
    """All architectures with LoRA first, then all tasks, all kinds on one, then all on all, by fourths."""
    if one.adapter == "lora":
        turn = int(one.data != natural(one.architecture))
    elif (one.architecture, one.data) in ON_ONE:
        turn = 2
    else:
        turn = 3 + (ARCHITECTURES.index(one.architecture) + KINDS.index(one.adapter)) % 4
    return turn, one.architecture, one.model, one.data, KINDS.index(one.adapter)


def main() -> None:
    """Try what is left, and write both files after every base."""
    found = found_in(FOUND) if FOUND.is_file() and "--fresh" not in sys.argv else {}
    left = [cell for cell in planned() if cell not in found]
    jobs = [
        list(own) for _, own in groupby(sorted(left, key=_order), key=lambda one: (_order(one)[0], one[:3]))
    ]
    if "--page" not in sys.argv:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        importlib.import_module("tests.support.support_cells")  # once, before the workers are forked
        with ProcessPoolExecutor(WORKERS) as pool:
            for done in as_completed([pool.submit(tried, job) for job in jobs]):
                found |= done.result()
                FOUND.write_text(written(found), encoding="utf-8")
                name = next(iter(done.result()))
                print(f"{len(found)} of {len(planned())}: {name.architecture}, {name.data}", file=sys.stderr)
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
