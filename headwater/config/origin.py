"""base_of_run(): where the base model of an adapter in a run folder lies."""

from __future__ import annotations

import json
from pathlib import Path


def base_of_run(adapter: Path) -> str | None:
    """The base model's folder where the adapter still lies in the run folder it came from.

    An exported adapter names its base as the federation file does: relative to that file.
    """
    try:
        origin = json.loads((adapter.resolve().parent / "state" / "origin.json").read_text(encoding="utf-8"))
        notes = json.loads((adapter / "headwater.json").read_text(encoding="utf-8"))
        found = Path(origin["folder"], notes["base"]["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found) if found.is_dir() else None
