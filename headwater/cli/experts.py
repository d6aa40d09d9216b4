"""``headwater compress``, ``decompress`` and ``inspect``: adapters as small files, and what is in them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from headwater.errors import ConfigError
from headwater.experts.compress import Compeft, Exact, ExpertCodec, Rounded, compress
from headwater.experts.decompress import decompress
from headwater.experts.describe import Description, describe, folder_bytes, loss
from headwater.experts.expert_file import open_adapter
from headwater.files import write_atomically
from headwater.merging.offline.peft_folder import PeftFolder

DENSITY = 0.2
_SHOWN = 8
"""Modules that ``inspect`` lists without ``--all``: those with the largest norm."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a folder of PEFT, or a .hw file")
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    _CONFIGURE[parser.get_default("verb")](parser)


def run(options: argparse.Namespace) -> int:
    """Compress, decompress or inspect."""
    origin = None if options.origin is None else open_adapter(options.origin)
    _RUN[options.verb](options, origin)
    return 0


def _configure_compress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the .hw file to write"
    )
    parser.add_argument(
        "--codec", choices=tuple(_CODECS), default="compeft",
        help="compeft: signs of the largest values; bf16: 8 bits of precision; exact: lossless (compeft)",
    )  # fmt: skip
    parser.add_argument("--density", type=float, help=f"of the values that compeft keeps ({DENSITY})")
    _add_origin(parser, "keep what changed since this adapter, which readers of the file then need too")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")


def _configure_decompress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    _add_origin(parser, "the adapter that the file was compressed against")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --output")


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    _add_origin(parser, "the adapter that the file was compressed against")
    parser.add_argument("--all", action="store_true", help=f"list all modules, not the {_SHOWN} largest")


def _add_origin(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--origin", type=Path, metavar="ADAPTER", help=about)


def _compress(options: argparse.Namespace, origin: PeftFolder | None) -> None:
    if options.output.exists() and not options.overwrite:
        raise ConfigError(
            f"--output {options.output}",
            expected="a file that is not there yet",
            got="one that is",
            hint="Name another, or add --overwrite.",
        )
    adapter = open_adapter(options.adapter, origin)
    codec = _CODECS[options.codec](options, origin)
    write_atomically(options.output, compress(adapter, codec))
    after = open_adapter(options.output, origin)
    before, size, found = folder_bytes(adapter), folder_bytes(after), describe(after)
    lost = loss(adapter, after)
    if options.json:
        print(json.dumps({"bytes": size, "bytes_before": before, "loss": lost, "digest": after.digest}))
        return
    print(f"compressed {options.adapter} to {options.output}: {size:,} bytes, {before / size:.1f}x smaller")
    print("\n".join(_sizes(found)))
    print(f"  {lost:.3g} of the length of its change is lost")


def _decompress(options: argparse.Namespace, origin: PeftFolder | None) -> None:
    adapter = open_adapter(options.adapter, origin)
    decompress(adapter, options.output, overwrite=options.overwrite)
    size = folder_bytes(PeftFolder.open(options.output))
    if options.json:
        print(json.dumps({"folder": str(options.output), "bytes": size}))
    else:
        print(f"decompressed {options.adapter} to {options.output}: {size:,} bytes")


def _inspect(options: argparse.Namespace, origin: PeftFolder | None) -> None:
    found = describe(open_adapter(options.adapter, origin))
    print(json.dumps(asdict(found)) if options.json else "\n".join(_told(found, everything=options.all)))


def _exact(options: argparse.Namespace, origin: PeftFolder | None, codec: type[ExpertCodec]) -> ExpertCodec:
    for name, value in (("--density", options.density), ("--origin", origin)):
        if value is not None:
            raise ConfigError(name, expected="--codec compeft", got=f"--codec {options.codec}")
    return codec()


_CODECS: Mapping[str, Callable[[argparse.Namespace, PeftFolder | None], ExpertCodec]] = {
    "compeft": lambda options, origin: Compeft(
        DENSITY if options.density is None else options.density, origin
    ),
    "bf16": lambda options, origin: _exact(options, origin, Rounded),
    "exact": lambda options, origin: _exact(options, origin, Exact),
}


def _told(found: Description, *, everything: bool) -> list[str]:
    lines = [f"{found.path}: {found.kind} for {found.base or 'a base that it does not name'}"]
    lines.append(f"  {found.bytes:,} bytes, digest {found.digest[:12]}")
    lines += _sizes(found)
    if found.origin:
        lines.append(f"  added to the adapter with digest {found.origin[:12]}")
    rows = [
        (norm, f"{name}: rank {rank} of {rows} x {columns}, norm {norm:.4g}")
        for name, (rank, (rows, columns), norm) in found.modules.items()
    ]
    rows += [
        (norm, f"{name}: {list(shape)}, norm {norm:.4g}") for name, (shape, norm) in found.tensors.items()
    ]
    ranks = [rank for rank, _, _ in found.modules.values()]
    if ranks:
        low, high = min(ranks), max(ranks)
        lines.append(f"  {len(ranks)} LoRA modules of rank {low}" + (f" to {high}" if high > low else ""))
    shown = len(rows) if everything else _SHOWN
    lines += [f"  {text}" for _, text in sorted(rows, key=lambda row: -row[0])[:shown]]
    return lines + ([f"  and {len(rows) - shown} more: --all"] if len(rows) > shown else [])


def _sizes(found: Description) -> list[str]:
    lines = [f"  {found.values:,} values, {8 * found.bytes / max(1, found.values):.3g} bits each"]
    if found.ternary is not None:
        part = found.ternary
        lines.append(
            f"  {part.values:,} of them ternary, {part.kept / max(1, part.values):.3g} kept, "
            f"{8 * part.bytes / max(1, part.values):.4g} bits each "
            f"({part.bytes / part.bound - 1:+.1%} of the entropy bound)"
            if part.bound
            else f"  {part.values:,} of them ternary, none kept"
        )
    return lines


_CONFIGURE = {
    "compress": _configure_compress,
    "decompress": _configure_decompress,
    "inspect": _configure_inspect,
}
_RUN = {"compress": _compress, "decompress": _decompress, "inspect": _inspect}
