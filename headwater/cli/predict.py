"""``headwater predict ADAPTER``: classify or continue texts or rows with an adapter, or measure it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from headwater.adapters.predict import Predictor
    from headwater.data.files.table import Table

_PLAIN = (".txt", "")
"""Files of a text per line. Others hold rows."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the adapter/ folder of a run")
    parser.add_argument("text", nargs="*", help="texts; without any, --file or standard input")
    parser.add_argument(
        "--file",
        type=Path,
        help="rows as in [data] (.jsonl, .csv, .parquet, …, or a folder); of any other file, a text per line",
    )
    parser.add_argument(
        "--metric",
        action="store_true",
        help="print the federation's metrics on the labelled rows of --file, not answers",
    )
    parser.add_argument("--base", help="folder or hub name of the base model, if it has moved")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a causal model's answer")
    parser.add_argument("--json", action="store_true", help="one JSON object per text, or of all metrics")


def run(options: argparse.Namespace) -> int:
    """Answer for every text or row, one line each; or measure."""
    if options.max_new_tokens < 1:
        raise ConfigError("--max-new-tokens", expected="at least 1", got=str(options.max_new_tokens))
    if options.text and options.file:
        raise ConfigError("headwater predict", expected="texts or --file", got="both")
    rows = options.file is not None and (options.file.is_dir() or options.file.suffix.lower() not in _PLAIN)
    if options.metric and not rows:
        raise ConfigError(
            "--metric",
            expected="--file with labelled rows (.jsonl, .csv, .parquet, …)",
            got=str(options.file or "texts"),
        )
    texts = [] if rows else list(_texts(options))
    if not rows and not texts:
        raise DataError(
            "headwater predict",
            expected="at least one text",
            got="none",
            hint="Give it as an argument, with --file, or on standard input.",
        )
    predictor = _open(options)
    for notice in predictor.notices:
        print(f"note: {notice}", file=sys.stderr)
    if not rows:
        _answer_texts(predictor, texts, options)
        return 0

    from headwater.data.opened import rows_of
    from headwater.training.score import reading_of

    table = rows_of(options.file, reading_of(predictor).data)
    if options.metric:
        _measure(predictor, table, as_json=options.json)
    else:
        _answer_rows(predictor, table, options)
    return 0


def _open(options: argparse.Namespace) -> Predictor:
    from headwater.adapters.predict import Predictor
    from headwater.config.origin import base_of_run

    try:
        return Predictor.open(options.adapter, base=options.base or base_of_run(options.adapter))
    except ModelError as error:
        if options.base or not error.who.startswith("model.path"):
            raise
        hint = "Say where the base model is: --base FOLDER."
        raise ModelError(error.who, expected=error.expected, got=error.got, hint=hint) from None


def _answer_texts(predictor: Predictor, texts: list[str], options: argparse.Namespace) -> None:
    if predictor.writes:
        for text in texts:
            (answer,) = predictor.generate([text], max_new_tokens=options.max_new_tokens)
            _print_answer(text, answer, as_json=options.json)
        return
    for text, found in _answers(predictor, texts):
        _print_class(predictor, text, found, as_json=options.json)


def _answers(predictor: Predictor, texts: list[str]) -> Iterable[tuple[str, dict[str, object]]]:
    if predictor.reading is None or predictor.reading.data.needs == "row":
        return zip(texts, predictor.classify(texts), strict=True)

    from headwater.training.score import as_rows, classified

    return classified(predictor, as_rows(predictor, texts))


def _answer_rows(predictor: Predictor, table: Table, options: argparse.Namespace) -> None:
    from headwater.training.score import classified, prompts

    if not predictor.writes:
        for text, found in classified(predictor, table):
            _print_class(predictor, text, found, as_json=options.json)
        return
    for text, tokens in prompts(predictor, table):
        answer = predictor.continue_tokens(tokens, options.max_new_tokens, name=text[:40])
        _print_answer(text, answer, as_json=options.json)


def _measure(predictor: Predictor, table: Table, *, as_json: bool) -> None:
    from headwater.training.score import score

    found = score(predictor, table)
    if as_json:
        print(json.dumps({**found.metrics, "examples": found.examples, "of": found.of}))
        return
    for name, value in found.metrics.items():
        print(f"{name}\t{value:.6g}")
    drawn = f" of {found.of}, drawn as in the federation" if found.of != found.examples else ""
    print(f"examples\t{found.examples}{drawn}")


def _print_answer(text: str, answer: str, *, as_json: bool) -> None:
    print(json.dumps({"text": text, "answer": answer}, ensure_ascii=False) if as_json else answer)


def _print_class(predictor: Predictor, text: str, found: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"text": text, **found}, ensure_ascii=False))
    else:
        print(f"{predictor.task.line(found)}\t{text}")


def _texts(options: argparse.Namespace) -> Iterator[str]:
    if options.text:
        for number, text in enumerate(options.text, start=1):
            if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
                raise DataError(f"text {number}", expected="UTF-8 text", got=ascii(text[:40]))
            yield text
        return
    try:
        source = (options.file.read_bytes() if options.file else sys.stdin.buffer.read()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{options.file or 'standard input'}", expected="UTF-8 text", got=str(error)
        ) from None
    # split at \n only: str.splitlines also cuts at U+2028 and others that a text may hold
    yield from (line.strip("\r") for line in source.removeprefix("\ufeff").split("\n") if line.strip())
