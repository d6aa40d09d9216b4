"""``headwater verify ADAPTER``: what its receipts prove of an adapter, and what they do not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwater.errors import ConfigError, DecodeError
from headwater.files import read_lines
from headwater.receipts.adapter_hash import FoundAdapter, adapter_hash
from headwater.receipts.bundle import LEAVES, read_leaves
from headwater.receipts.check import check_chain, check_updates, lineage, own_updates, receipt_of
from headwater.receipts.receipt import Receipt
from headwater.receipts.sent import SENT, read_sent
from headwater.receipts.written import RECEIPTS, UPDATES, read_receipts, read_updates
from headwater.security.receipt_keys import short
from headwater.text import name_some

NOT_PROVEN = (
    "that the merge followed the rule, or weighed anybody as the settings say: that is the server's word",
    "what owners trained on, and that no other adapter was made of their updates",
    "adapter_config.json, and tensors that never travel: receipts hash what is trained",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("adapter", type=Path, metavar="ADAPTER", help="an exported folder, a run folder, or a version's file")
    add("--receipts", type=Path, metavar="FOLDER", help="where receipts.jsonl is, if it is not beside it")
    add("--owner", type=Path, metavar="FOLDER", help="an agent's state folder: are its updates in?")
    add("--ca", type=Path, metavar="FILE", help="ca.pem: its authority must vouch for the server's key")
    add("--key", metavar="FINGERPRINT", help="of the one key that may have signed")
    add(
        "--before",
        type=Path,
        action="append",
        default=[],
        metavar="ADAPTER",
        help="what its run went on from, verified with it; may be given again for what was before that",
    )
    add("--json", action="store_true", help="as JSON")


@dataclass(frozen=True)
class Verified:
    """An adapter whose receipts hold."""

    found: FoundAdapter
    receipts: Sequence[Receipt]
    receipt: Receipt
    line: Sequence[Receipt]
    folder: Path


def run(options: argparse.Namespace) -> int:
    """Check; print what is proven. What does not hold is an error that names it."""
    ca_pem = _certificate(options.ca)
    checked = _verified(options.adapter, options.receipts, ca_pem, options.key)
    told = _told(checked, ca_pem is not None, options.key is not None)
    later = checked
    for path in options.before:
        earlier = _verified(path, None, ca_pem, options.key)
        _require_link(later, earlier)
        told["lineage"].append(f"before it: run {earlier.receipt.run}, {_rounds(earlier.line)}")
        later = earlier
    about = later.receipts[0].about
    if "adapter" in about:
        told["not_proven"].insert(0, f"what it went on from: adapter {about['adapter']} (--before)")
    if options.owner is not None:
        told["owner"] = _of_owner(options.owner, checked)
    if options.json:
        print(json.dumps({"adapter_sha256": checked.found.sha256, **told}, indent=1))
    else:
        print(f"adapter {checked.found.sha256}")
        for name, lines in told.items():
            for line in lines:
                print(f"{name.replace('_', ' ')}: {line}")
    return 0


def _verified(path: Path, receipts_in: Path | None, ca_pem: bytes | None, key: str | None) -> Verified:
    """The adapter with its receipts, all checked.

    Raises:
        ConfigError: there is no adapter, or none with receipts.
        DecodeError: something does not hold.
    """
    adapter, folder = _places(path)
    folder = receipts_in or folder
    if not (folder / RECEIPTS).is_file():
        raise ConfigError(
            f"headwater verify {path}",
            expected=f"{RECEIPTS} in {folder}",
            got="none",
            hint="Name their folder with --receipts. Older versions, and exports with noise, have none.",
        )
    receipts = read_receipts(folder / RECEIPTS)
    check_chain(receipts, str(folder), ca_pem=ca_pem, key=key)
    found = adapter_hash(adapter)
    receipt = receipt_of(receipts, found.sha256, f"adapter {adapter}")
    return Verified(found, receipts, receipt, lineage(receipts, receipt), folder)


def _places(path: Path) -> tuple[Path, Path]:
    """Of what was named: the adapter's files, and where its receipts are by default."""
    if path.is_file():
        return path, path.parent.parent / "receipts"
    if (path / "state" / "origin.json").is_file():  # a run's folder
        return path / "adapter", path / "receipts"
    return path, path


def _told(checked: Verified, by_authority: bool, by_key: bool) -> dict[str, list[str]]:
    receipts, receipt, found = checked.receipts, checked.receipt, checked.found
    keys = sorted({short(one.key) for one in receipts})
    run = f"run {receipt.run}: receipt {receipt.number}, after round {receipt.round}"
    proven = [
        f"{len(receipts)} receipts, none missing or altered, each signed by {name_some(keys)}",
        f"its values, {found.values:,}, are those of {run}",
    ]
    not_proven = list(NOT_PROVEN)
    if not found.values:
        proven[1] = f"the hash that its notes name is of {run}"
        not_proven.insert(0, "its values: this kind of adapter is saved as what follows from them")
    if by_authority:
        proven.append("the authority of the certificate vouches for that key")
    elif not by_key:
        not_proven.insert(0, "whose key that is: give --ca, or compare --key with what the organiser shows")
    lines = [_rounds(checked.line)]
    if checked.line[-1].kind != "start":
        lines.append(f"the run is older than its receipts, which begin at round {checked.line[-1].round}")
    return {"proven": proven, "lineage": lines, "not_proven": not_proven}


def _rounds(line: Sequence[Receipt]) -> str:
    """The way to an adapter, in words."""
    rounds = [one for one in line if one.kind == "round"]
    back = sum(one.kind == "rollback" for one in line)
    updates = sum(one.count for one in rounds)
    text = f"{len(rounds)} rounds with {updates} updates"
    return f"{text}, {back} rollbacks" if back else text


def _require_link(later: Verified, earlier: Verified) -> None:
    """Raise ``DecodeError`` unless the later run says that it went on from the earlier one's adapter."""
    about = later.receipts[0].about
    for part, expected, got in (
        ("adapter", about.get("adapter", ""), earlier.found.sha256),
        ("receipt", about.get("receipt", earlier.receipt.sha256()), earlier.receipt.sha256()),
    ):
        if expected != got:
            raise DecodeError(
                f"run {later.receipt.run}: {part} that it went on from",
                expected=expected or "none: its adapter was new",
                got=got,
            )


def _of_owner(folder: Path, checked: Verified) -> list[str]:
    """Which of an owner's updates are in the adapter."""
    if not (folder / SENT).is_file():
        raise ConfigError(
            f"--owner {folder}", expected=f"an agent's state folder with {SENT}", got="none",
            hint="An agent writes it with the first update that it sends.",
        )  # fmt: skip
    wires = {receipt.wire for receipt in checked.receipts}  # another one after a restore
    sent = [one for one in read_sent(folder / SENT) if one.run in wires]
    if not sent:
        return [f"this device sent no update to run {checked.receipt.run}"]
    leaves = _leaves(checked.folder)
    check_updates(checked.receipts, leaves, str(checked.folder))
    inside, outside = own_updates(checked.line, leaves, sent)
    name = sent[0].client
    rounds = _ranges(one.round for one in inside) or "none"
    lines = [f"{name}: its updates of these rounds are in it: {rounds}"]
    if outside:
        missing = _ranges(one.round for one in outside)
        why = (
            "refused, late, given up by a rollback, an attempt at a masked sum that was begun anew, "
            "summed by an edge aggregator, or after this adapter"
        )
        lines.append(f"{name}: sent, and not in it: {missing} ({why})")
    lacking = [one.number for one in checked.line if one.count and one.number not in leaves]
    if lacking:
        lines.append(f"{name}: of {len(lacking)} receipts there are no hashes here: ask the organiser")
    return lines


def _ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in words: ``1-4, 7``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _leaves(folder: Path) -> dict[int, tuple[bytes, ...]]:
    """From an export, or of a run's own file."""
    if (folder / LEAVES).is_file():
        return read_leaves(folder / LEAVES)
    updates = read_updates(folder / UPDATES)
    return {number: tuple(entry.leaf() for entry in entries) for number, entries in updates.items()}


def _certificate(path: Path | None) -> bytes | None:
    return None if path is None else b"\n".join(read_lines(path)) + b"\n"
