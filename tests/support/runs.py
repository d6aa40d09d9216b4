"""A whole tiny federation on disk for end-to-end tests: :func:`tiny_federation`, :func:`run`.

:func:`bare_federation` is one whose processes start in a fraction of the time: for what hangs on no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from headwater.config import load_federation
from headwater.server.events import Event
from headwater.server.rounds.commits import Commits
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from tests.support.tiny_models import tiny_bert

OWNERS = {"ann": 24, "ben": 16, "cleo": 12}


def rows(owner: str, count: int, shift: int = 0) -> list[dict[str, str]]:
    """Texts whose label is whether they say good or bad."""
    found = []
    for i in range(count):
        label = "bad" if (i + shift) % 2 else "good"
        found.append({"text": f"the movie was {label} {owner[0]}{i + shift}", "label": label, "owner": owner})
    return found


def write_jsonl(path: Path, content: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def tiny_federation(folder: Path, *, owners: Mapping[str, int] = OWNERS, **tables: dict[str, Any]) -> Path:
    """Write model, data and ``federation.toml`` for three ``owners``; ``tables`` change or add tables.

    A key of theirs that is None is taken out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tiny_bert(folder / "bert")
    write_jsonl(folder / "train.jsonl", [r for o, n in owners.items() for r in rows(o, n)])
    write_jsonl(folder / "test.jsonl", rows("dora", 20, 100))
    content: dict[str, dict[str, Any]] = {
        "federation": {"name": "tiny", "rounds": 3, "seed": 5},
        "model": {"kind": "encoder", "path": "bert"},
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4.0},
        "data": {
            "kind": "classification",
            "path": "train.jsonl",
            "test": "test.jsonl",
            "labels": ["bad", "good"],
            "validation_fraction": 0.2,
            "partition": {"kind": "column", "column": "owner"},
        },
        "training": {"kind": "backprop", "learning_rate": 0.01, "batch_size": 8},
        "codec": {"up": {"kind": "compeft", "density": 0.2}},
        "evaluation": {"min_client_examples": 3},
    }
    for name, change in tables.items():
        content[name] = {k: v for k, v in {**content.get(name, {}), **change}.items() if v is not None}
    path = folder / "federation.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def bare_federation(folder: Path, *, size: int = 2000, **tables: dict[str, Any]) -> Path:
    """Write ``federation.toml`` of a bare vector and three clients; ``tables`` change or add tables."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, dict[str, Any]] = {
        "federation": {"name": "bare", "rounds": 3, "seed": 5},
        "model": {"kind": "vector", "size": size},
        "data": {"kind": "none", "clients": 3, "examples": 7},
        "training": {"kind": "noop"},
        "codec": {"up": {"kind": "compeft", "density": 0.2}},
    }
    for name, change in tables.items():
        content[name] = {**content.get(name, {}), **change}
    path = folder / "federation.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def run(file: Path, out: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], list[Event]]:
    """Simulate ``file`` into the new folder ``out``: its summary and all events."""
    events: list[Event] = []
    loaded = load_federation(file, overrides)
    folder = RunFolder.create(out, loaded, {"engine": "inprocess"})
    return simulate(loaded, folder, observer=events.append, **options), events


def resume(out: Path, **options: Any) -> tuple[dict[str, Any], list[Event]]:
    """Go on with the run in ``out``."""
    events: list[Event] = []
    folder, loaded, _ = RunFolder.open(out)
    return simulate(loaded, folder, observer=events.append, **options), events


def checkpoints_of(out: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the checkpoint of the run in ``out`` will have been after each commit."""
    saved, commit = list[bytes](), Commits.commit

    def kept(self: Commits, *args: Any, **options: Any) -> None:
        commit(self, *args, **options)
        saved.append(RunFolder(out).checkpoint.read_bytes())

    monkeypatch.setattr(Commits, "commit", kept)
    return saved
