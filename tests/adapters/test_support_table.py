"""The support table is what the JSON says, the JSON is what happens, and it has every kind and task."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import BaseModel

from headwater.adapters.kinds import table as kinds
from headwater.tasks import table as tasks
from tests.support.peft_types import NOT_TAKEN, PARTLY, TAKEN
from tests.support.support_cells import Workshop
from tests.support.support_page import found_in, page, reason
from tests.support.support_plan import ARCHITECTURES, KINDS, TASKS, Cell, cell, natural, planned

ROOT = Path(__file__).parents[2]
FOUND = found_in(ROOT / "results" / "support.json")
PAGE = ROOT / "docs" / "reference" / "support.md"
SAMPLE = [
    *(cell(name, natural(name), "uni-lora") for name in ("bart", "bloom")),
    *(cell(name, natural(name), kind) for name, kind in (("albert", "hira"), ("bert", "oft"))),
    *(cell(name, natural(name), "prefix") for name in ("albert", "bart")),
]
"""Few, of a model each: the others are tried by ``make support``."""


def kind(of: type[BaseModel]) -> str:
    """The ``kind`` of a class of settings."""
    (name,) = get_args(of.model_fields["kind"].annotation)
    return str(name)


def test_the_page_is_what_the_json_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(FOUND)


def test_every_kind_and_task_is_in_the_plan_and_most_work() -> None:
    assert sorted(KINDS) == sorted(kind(settings) for settings in kinds.KINDS)
    assert sorted(TASKS) == sorted(kind(task.settings_class) for task in tasks._TASKS)
    assert (len(set(KINDS)) >= 20, len(set(TASKS)) >= 8, len(set(ARCHITECTURES)) >= 30) == (True, True, True)
    assert set(FOUND) == set(planned())
    works = {one for one, said in FOUND.items() if not said}
    assert len({one.adapter for one in works}) >= 20
    assert len({one.data for one in works}) >= 8
    assert len({one.architecture for one in works}) >= 29


def test_every_kind_of_peft_is_taken_or_refused_with_a_reason() -> None:
    """PEFT's own list; what the kinds make is read from their files, by the names of PEFT's classes."""
    assert sorted([*TAKEN, *PARTLY, *NOT_TAKEN]) == sorted(member.name for member in PeftType)
    assert sorted(kind for kinds in TAKEN.values() for kind in kinds) == sorted(KINDS)
    folder = ROOT / "headwater" / "adapters" / "kinds"
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    words = set(re.findall(r"\w+Config\b", source))
    made = {name for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if config.__name__ in words}
    assert {getattr(name, "name", name) for name in made} == set(TAKEN)


def test_nothing_breaks_in_silence() -> None:
    assert [one for one, said in FOUND.items() if said.startswith("broken")] == []


@pytest.mark.parametrize("one", SAMPLE, ids=lambda one: "-".join(one))
def test_a_cell_is_as_the_table_says(one: Cell, tmp_path: Path) -> None:
    assert reason(Workshop(tmp_path).outcome(one) or "") == reason(FOUND[one])
