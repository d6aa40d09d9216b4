"""What an exported adapter carries of its run's receipts: :func:`bundle`, :func:`read_leaves`.

``receipts.jsonl`` is the chain up to the adapter, ``receipt_leaves.jsonl`` a line for each receipt: hashes of
its updates, without names. An owner finds its own among them; nobody else can tell whose the others are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.errors import DecodeError, HeadwaterError
from headwater.files import each_line
from headwater.receipts.written import RECEIPTS, UPDATES, read_receipts, read_updates

LEAVES = "receipt_leaves.jsonl"
MOST_LEAVES = 1 << 17
"""Updates of which an export has the hashes (8 MiB); of more it has the last rounds'."""

_LEAF = re.compile(r"[0-9a-f]{64}")


def bundle(folder: Path, adapter_sha256: str) -> dict[str, bytes]:
    """Files to lie beside an exported adapter; none where no readable receipt of the run has it.

    Args:
        folder: ``receipts`` in the run's folder.
        adapter_sha256: of the adapter.
    """
    try:
        receipts, updates = read_receipts(folder / RECEIPTS), read_updates(folder / UPDATES)
    except (
        HeadwaterError
    ):  # an adapter is not held back for them: `headwater verify` of the run says what is wrong
        return {}
    ends = [place for place, receipt in enumerate(receipts) if receipt.result == adapter_sha256]
    if not ends:
        return {}
    receipts = receipts[: ends[-1] + 1]
    left, lines = MOST_LEAVES, list[bytes]()
    for receipt in reversed(receipts):
        leaves = [entry.leaf().hex() for entry in updates.get(receipt.number, ())]
        left -= len(leaves)
        if left < 0:
            break
        row = {"number": receipt.number, "leaves": leaves}
        lines.append(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    chain = b"".join(receipt.line() + b"\n" for receipt in receipts)
    return {RECEIPTS: chain, LEAVES: b"".join(reversed(lines))}


def goes_on_from(lineage: Mapping[str, Any]) -> dict[str, str]:
    """What the first receipt of a run says of the adapter that it goes on with.

    Args:
        lineage: of its start: ``adapter_sha256``, and ``receipt`` where the adapter came with receipts.
    """
    found = {"adapter": lineage.get("adapter_sha256"), "receipt": lineage.get("receipt")}
    return {name: value for name, value in found.items() if isinstance(value, str) and _LEAF.fullmatch(value)}


def receipt_hash(folder: Path, adapter_sha256: object) -> str | None:
    """Hash of the receipt of an exported adapter that carries its receipts; None where it does not.

    Nothing is checked: who verifies the adapter does that.
    """
    try:
        receipts = read_receipts(folder / RECEIPTS)
    except HeadwaterError:
        return None
    found = [receipt.sha256() for receipt in receipts if receipt.result == adapter_sha256]
    return found[-1] if found else None


def read_leaves(path: Path) -> dict[int, tuple[bytes, ...]]:
    """Leaf hashes by receipt's number; empty without the file.

    Raises:
        DecodeError: a line has none.
        StorageError: the file cannot be read.
    """
    found = {}
    for number, line in enumerate(each_line(path), start=1):
        try:
            row = json.loads(line)
            if not all(_LEAF.fullmatch(leaf) for leaf in row["leaves"]):
                raise ValueError("no hash")
            found[int(row["number"])] = tuple(bytes.fromhex(leaf) for leaf in row["leaves"])
        except (ValueError, OverflowError, TypeError, KeyError, RecursionError) as error:
            raise DecodeError(
                f"{path} line {number}", expected="hashes of updates", got=str(error)[:80]
            ) from error
    return found
