"""``headwater server adapters average``: several versions of a run as one adapter."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.cli.server.connect import take_words
from headwater.cli.server.exports import require_free, unpack, whole_folder
from headwater.errors import ConfigError
from headwater.merging.offline.decay import DECAYS, decay_weights

if TYPE_CHECKING:
    from headwater.merging.offline.folder import MergeReport
    from headwater.proto.control import ControlClient
    from headwater.protocol.control import AdapterRow

_WHO = "headwater server adapters average"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of its own."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, metavar="K", help="average the newest K versions")
    which.add_argument("--versions", type=_numbers, metavar="N,N,…", help="average these versions")
    parser.add_argument(
        "--decay",
        choices=list(DECAYS),
        default="linear",
        help="the fall of the learning rate that an average stands for (linear: the plain mean)",
    )
    parser.add_argument(
        "--space",
        choices=["factors", "product"],
        default="factors",
        help="of LoRA: average A and B, or their product, which takes a higher rank (factors)",
    )


def average(client: ControlClient, options: argparse.Namespace) -> int:
    """Fetch the versions, write their average; the exit code."""
    names = take_words(options, 0, 1)
    if options.out is None:
        raise ConfigError(_WHO, expected="--out FOLDER, where the average goes", got="no --out")
    require_free(options.out)  # before the daemon is asked
    rows = chosen(client.adapters(names[0] if names else ""), options.last, options.versions)
    report = _write(client, rows, options)
    weights = decay_weights(options.decay, len(rows))
    if options.json:
        told = asdict(report) | {"folder": str(options.out)}
        told["weights"] = {str(row.version): weight for row, weight in zip(rows, weights, strict=True)}
        print(json.dumps(told))
        return 0
    print(f"{options.out}: run {rows[0].run}, {len(rows)} versions, as a {options.decay} decay weighs them")
    for row, weight in zip(rows, weights, strict=True):
        print(f"  {weight:.4g}  version {row.version}, after round {row.round}")
    return 0


def chosen(rows: Sequence[AdapterRow], last: int | None, versions: Sequence[int] | None) -> list[AdapterRow]:
    """The versions to average, oldest first.

    Args:
        rows: of the run, in order.
        last: the newest so many on the line that leads to the newest one: a rollback's abandoned ones and
            the untrained first one are not on it.
        versions: these instead.

    Raises:
        ConfigError: fewer than two, one that is not there, or one whose values were pruned.
    """
    by_number = {row.version: row for row in rows}
    if versions is not None:
        absent = [n for n in versions if n not in by_number]
        found = [by_number[n] for n in sorted(set(versions)) if n in by_number]
    elif last is not None:
        absent, found = [], _line(by_number)[-last:] if last > 0 else []
    else:
        raise ConfigError(_WHO, expected="--last K, or --versions N,N,…", got="neither")
    if absent or len(found) < 2:
        raise ConfigError(
            _WHO,
            expected="two or more of the run's versions",
            got=f"no version {absent[0]}" if absent else str(len(found)),
            hint="See: headwater server adapters list",
        )
    if pruned := [row.version for row in found if not row.kept]:
        raise ConfigError(
            f"adapter version {pruned[0]}",
            expected="one whose values are kept",
            got="one whose values were pruned",
            hint="Average fewer; retention.adapters in server.toml keeps more.",
        )
    return found


def _line(rows: dict[int, AdapterRow]) -> list[AdapterRow]:
    """From the first trained version to the newest, by parents; equal values once."""
    line: list[AdapterRow] = []
    row = rows.get(max(rows, default=0))
    while row is not None:
        if row.round > 0 and all(row.sha256 != later.sha256 for later in line):
            line.append(row)
        row = rows.get(row.parent) if row.parent < row.version else None
    return line[::-1]


def _write(client: ControlClient, rows: Sequence[AdapterRow], options: argparse.Namespace) -> MergeReport:
    """The folder, whole or not at all."""
    from headwater.merging.offline.folder import RECIPE, merge_folders
    from headwater.merging.offline.output import write_json
    from headwater.merging.offline.recipe import Recipe
    from headwater.merging.offline.rules.linear import Mean

    with whole_folder(options.out) as merged, tempfile.TemporaryDirectory(dir=merged.parent) as scratch:
        folders = [Path(scratch, f"run {row.run}", f"version {row.version}") for row in rows]
        for folder, row in zip(folders, rows, strict=True):
            unpack(client.export(row.run, row.version), folder)
        weights = decay_weights(options.decay, len(rows))
        report = merge_folders(
            folders, merged, Recipe(Mean(), options.space), weights=weights, overwrite=True
        )
        record = json.loads((merged / RECIPE).read_text(encoding="utf-8"))
        for entry in record["adapters"]:  # where they lay is nowhere now
            entry["folder"] = str(Path(entry["folder"]).relative_to(scratch))
        write_json(merged / RECIPE, record | {"decay": options.decay})
    return report


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"expected versions' numbers with commas between, got {text!r}")
    return [int(word) for word in words]
