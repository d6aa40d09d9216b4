"""What the command line prints for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def as_json(value: object) -> str:
    """Rows as one line of JSON; a value that is not finite becomes null."""

    def plain(found: object) -> object:
        match found:
            case dict():
                return {k: plain(v) for k, v in found.items()}
            case list() | tuple():
                return [plain(v) for v in found]
            case float() if not math.isfinite(found):
                return None
            case _:
                return found

    if isinstance(value, tuple):
        return json.dumps([plain(dataclasses.asdict(v)) for v in value], ensure_ascii=False)
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    return json.dumps(plain(dataclasses.asdict(value)), ensure_ascii=False)
