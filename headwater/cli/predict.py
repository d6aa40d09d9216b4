"""``headwater predict ADAPTER``: classify or continue texts with an exported adapter."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from headwater.errors import ConfigError, DataError


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
    texts = list(_texts(options))
    if not texts:
        raise DataError("headwater predict", expected="at least one text", got="none")

    from headwater.adapters.predict import Predictor

    predictor = Predictor.open(options.adapter, base=options.base)
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
        yield from options.text
        return
    try:
        source = options.file.read_text(encoding="utf-8") if options.file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{options.file or 'standard input'}", expected="UTF-8 text", got=str(error)
        ) from None
    yield from (line for line in source.splitlines() if line.strip())
