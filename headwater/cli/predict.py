"""``headwater predict ADAPTER``: classify or continue texts with an exported adapter."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from headwater.errors import ConfigError, DataError, ModelError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the adapter/ folder of a run")
    parser.add_argument("text", nargs="*", help="texts; without any, --file or standard input")
    parser.add_argument("--file", type=Path, help="one text per line")
    parser.add_argument("--base", help="folder or hub name of the base model, if it has moved")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a causal model's answer")
    parser.add_argument("--json", action="store_true", help="one JSON object per text")


def run(options: argparse.Namespace) -> int:
    """Answer for every text, one line each."""
    if options.max_new_tokens < 1:
        raise ConfigError("--max-new-tokens", expected="at least 1", got=str(options.max_new_tokens))
    texts = list(_texts(options))
    if not texts:
        raise DataError(
            "headwater predict",
            expected="at least one text",
            got="none",
            hint="Give it as an argument, with --file, or on standard input.",
        )

    from headwater.adapters.predict import Predictor

    try:
        predictor = Predictor.open(options.adapter, base=options.base or _base_of_run(options.adapter))
    except ModelError as error:
        if options.base or not error.who.startswith("model.path"):
            raise
        hint = "Say where the base model is: --base FOLDER."
        raise ModelError(error.who, expected=error.expected, got=error.got, hint=hint) from None
    if predictor.labels is None:
        answers = predictor.generate(texts, max_new_tokens=options.max_new_tokens)
        for text, answer in zip(texts, answers, strict=True):
            print(
                json.dumps({"text": text, "answer": answer}, ensure_ascii=False) if options.json else answer
            )
        return 0
    for text, found in zip(texts, predictor.classify(texts), strict=True):
        if options.json:
            print(json.dumps({"text": text, **found}, ensure_ascii=False))
        else:
            print(f"{found['label']}\t{found['score']:.4f}\t{text}")
    return 0


def _texts(options: argparse.Namespace) -> Iterator[str]:
    if options.text and options.file:
        raise ConfigError("headwater predict", expected="texts or --file", got="both")
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


def _base_of_run(adapter: Path) -> str | None:
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
