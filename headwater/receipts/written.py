"""ReceiptBook: the receipts of a run as its server writes them.

::

    receipts/receipts.jsonl    one receipt per committed step; names nobody, may be handed on
    receipts/updates.jsonl     the updates of each, by client; the organiser's, as rounds.jsonl is

A step's updates are written first, then its receipt, then the run's checkpoint, which has the number and
hash of the last receipt: :meth:`ReceiptBook.keep_through` drops what a crash left before its checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headwater.errors import DecodeError
from headwater.files import append_line, each_line, write_atomically
from headwater.receipts.merkle import root
from headwater.receipts.receipt import Entry, Kind, Receipt, signed
from headwater.security.receipt_keys import ReceiptKey

RECEIPTS, UPDATES = "receipts.jsonl", "updates.jsonl"


@dataclass(frozen=True, slots=True)
class Head:
    """The last receipt, as a checkpoint has it."""

    number: int = -1
    sha256: str = ""


class ReceiptBook:
    """Writes a run's receipts; read them with :func:`read_receipts`.

    Args:
        folder: ``receipts`` in the run's folder.
        run: the run's id.
        wire: its id among the clients.
        spec: fingerprint of the adapter.
        model: SHA-256 of the base.
        key: gives the key that signs, when it is first needed.
        now: Unix seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        wire: str,
        spec: str,
        model: str,
        key: Callable[[], ReceiptKey],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._key_of, self._now = folder, key, now
        self._of_run = {"run": run, "wire": wire, "spec": spec, "model": model}
        self._key: ReceiptKey | None = None
        self.head = Head()

    def keep_through(self, head: Head) -> None:
        """Drop the receipts after this one, and go on from it.

        Where the files end before it, as after a power cut of a disk that lies, the chain goes on with a gap
        that :func:`headwater.receipts.check.check_chain` names.

        Raises:
            StorageError: they cannot be written.
        """
        self.head = head
        for name in (RECEIPTS, UPDATES):
            path = self._folder / name
            lines = list(each_line(path))
            end = next((i for i, line in enumerate(lines) if _number(line) > head.number), len(lines))
            kept = lines[:end]
            if path.exists() and (len(kept) < len(lines) or not path.read_bytes().endswith(b"\n")):
                write_atomically(path, b"".join(line + b"\n" for line in kept))

    def add(
        self,
        kind: Kind,
        *,
        round: int,
        base: str,
        result: str,
        settings: str,
        rule: str,
        entries: Sequence[Entry] = (),
        about: Mapping[str, str] | None = None,
    ) -> Head:
        """Write the next receipt; it is on disk when this returns.

        Args:
            kind: of the step.
            round: the last finished round.
            base: hash of the adapter before.
            result: after.
            settings: hash of the federation's settings.
            rule: kind of the merge rule.
            entries: the accepted updates, in any order.
            about: see :class:`Receipt`.

        Raises:
            StorageError: the disk is full or not writable; the receipts before are intact.
        """
        if self._key is None:
            self._key = self._key_of()
        key, number = self._key, self.head.number + 1
        entries = sorted(entries, key=lambda entry: entry.client)
        receipt = Receipt(
            **self._of_run,
            number=number,
            kind=kind,
            round=round,
            time=int(self._now()),
            settings=settings,
            rule=rule,
            base=base,
            result=result,
            count=len(entries),
            root=root([entry.leaf() for entry in entries]).hex(),
            about=dict(about or {}),
            previous=self.head.sha256,
            key=key.public,
            authority=key.authority,
            attestation=key.attestation,
        )
        receipt = signed(receipt, key.sign)
        rows = {"number": number, "updates": [asdict(entry) for entry in entries]}
        append_line(self._folder / UPDATES, json.dumps(rows, separators=(",", ":")).encode())
        append_line(self._folder / RECEIPTS, receipt.line())
        self.head = Head(number, receipt.sha256())
        return self.head

    def leaf_after(self, number: int | None, client: str) -> str:
        """The leaf of this client's first update after a receipt, in hex; empty where there is none."""
        updates = read_updates(self._folder / UPDATES)
        for at in sorted(updates):
            if number is None or at > number:
                for entry in updates[at]:
                    if entry.client == client:
                        return entry.leaf().hex()
        return ""

    def number_of(self, result: str) -> int | None:
        """The last receipt of this adapter; None if there is none."""
        found = None
        for receipt in read_receipts(self._folder / RECEIPTS):
            if receipt.result == result:
                found = receipt.number
        return found


def read_receipts(path: Path) -> list[Receipt]:
    """The receipts of a file in order; nothing of them is checked but their form.

    Raises:
        DecodeError: a line is no receipt.
        StorageError: the file cannot be read.
    """
    return [Receipt.read(line, f"{path} line {n}") for n, line in enumerate(each_line(path), start=1)]


def read_updates(path: Path) -> dict[int, tuple[Entry, ...]]:
    """The updates by their receipt's number; empty without the file.

    Raises:
        DecodeError: a line has none.
        StorageError: the file cannot be read.
    """
    found = {}
    for number, line in enumerate(each_line(path), start=1):
        try:
            row = json.loads(line)
            entries = tuple(Entry(**entry) for entry in row["updates"])
            found[int(row["number"])] = entries
        except (ValueError, OverflowError, TypeError, KeyError, RecursionError) as error:
            raise DecodeError(
                f"{path} line {number}", expected="updates by client", got=str(error)[:80]
            ) from error
    return found


def _number(line: bytes) -> int:
    """The line's receipt; -1 of one that cannot be read, which stays for whoever checks the chain."""
    try:
        return int(json.loads(line)["number"])
    except (ValueError, OverflowError, TypeError, KeyError, RecursionError):
        return -1
