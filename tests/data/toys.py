"""A tokenizer of letters and tables of made-up rows, for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.data.files.table import Table
from headwater.errors import DataError


@dataclass
class Turns:
    """What ``Letters.chat`` gives."""

    tokens: list[int]
    loss: list[bool]
    cut: bool = False
    cut_answer: bool = False
    remarks: tuple[str, ...] = ()


@dataclass
class Places:
    """What ``Letters.spans`` gives."""

    tokens: list[int]
    spans: list[tuple[int, int] | None]


class Letters:
    """One id per character, its code point; specials below 32."""

    pad, bos, eos = 0, 1, 2
    mask, size = 4, 128

    def encode(self, text: str, max_tokens: int, pair: str | None = None) -> list[int]:
        text = text if pair is None else f"{text}|{pair}"
        return [1, *map(ord, text[: max_tokens - 2]), 2]

    def spans(self, text: str, max_tokens: int, pair: str | None = None, stride: int = 0) -> list[Places]:
        before = [1] if pair is None else [1, *map(ord, text), 2]
        last, room = pair or text, max_tokens - len(before) - 1
        if room <= stride:
            raise DataError("letters", expected=f"room for more than {stride}", got=str(room))
        starts = range(0, max(1, len(last) - stride), room - stride)
        return [
            Places(
                [*before, *map(ord, last[i : i + room]), 2],
                [*[None] * len(before), *((k, k + 1) for k in range(i, min(i + room, len(last)))), None],
            )
            for i in starts
        ]

    def spell(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def encode_plain(self, text: str) -> list[int]:
        return list(map(ord, text))

    def prompt(self, text: str) -> list[int]:
        return [*([] if self.bos is None else [self.bos]), *self.encode_plain(text)]

    def has_control_text(self, text: str) -> bool:
        return "\x02" in text

    def chat(self, messages: Sequence[Mapping[str, Any]], max_tokens: int, **settings: Any) -> list[Turns]:
        tokens: list[int] = []
        loss: list[bool] = []
        for message in messages:
            said = [*map(ord, message["content"]), 2]
            tokens += [3, *said]
            loss += [False] + [message["role"] == "assistant"] * len(said)
        cut = len(tokens) > max_tokens
        return [Turns(tokens[:max_tokens], loss[:max_tokens], cut, cut and loss[max_tokens])]


class Bare(Letters):
    """Without tokens around a running text."""

    bos = eos = None


def table(rows: list[dict[str, object]], file: str = "rows.jsonl") -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(columns, (Path(file),), [0] * len(rows), list(range(1, len(rows) + 1)), ["line"])


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
