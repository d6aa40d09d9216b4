"""What the command line prints for programs."""

from __future__ import annotations

import dataclasses
import json

from headwater.text import json_safe


def as_json(value: object) -> str:
    """Rows as one line of JSON; a value that is not finite becomes null."""
    if isinstance(value, tuple):
        return json.dumps([json_safe(dataclasses.asdict(v)) for v in value], ensure_ascii=False)
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    return json.dumps(json_safe(dataclasses.asdict(value)), ensure_ascii=False)
