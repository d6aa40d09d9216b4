"""Receipt: what one committed step of a run took and gave, in one canonical text that is signed.

A line of ``receipts.jsonl`` is that text as JSON (sorted keys, no white space, ASCII) with ``signature``
in it. What is signed is ``"headwater receipt v1"``, a zero byte and the JSON without ``signature``; the
SHA-256 of the same bytes is the receipt's hash, which the next one has as ``previous``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from headwater.errors import DecodeError
from headwater.receipts.merkle import leaf_hash
from headwater.security.receipt_keys import verify_receipt

DOMAIN = b"headwater receipt v1\0"
MAX_LINE = 16_384
"""Bytes; a longer line is no receipt and is not parsed."""

Kind = Literal["start", "round", "rollback", "leaving"]
_KINDS = ("start", "round", "rollback", "leaving")
_HASH = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"([0-9a-f]{2}){0,256}")
_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted update.

    Args:
        client: whose.
        started: the round whose request it answered; an earlier one than the receipt's in buffered rounds.
        sha256: of the signed reply as it arrived; of an edge aggregator's reply where it is in a sum.
        edge: the edge aggregator that added it up; empty of an update that came itself.
    """

    client: str
    started: int
    sha256: str
    edge: str = ""

    def leaf(self) -> bytes:
        """Its leaf's hash, of ``[client, edge, sha256, started]`` as compact ASCII JSON: 32 bytes.

        Nobody who lacks the update can guess it: the update's own signature is in its hash.
        """
        content = [self.client, self.edge, self.sha256, self.started]
        return leaf_hash(json.dumps(content, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Receipt:
    """One link of the chain. It names no owner.

    Args:
        run: the run's id.
        wire: the run's id among the clients.
        number: 0, 1, …: its place in the chain.
        kind: ``start``, the adapter before training; ``round``; ``rollback``, to an earlier receipt's
            adapter; ``leaving``, the same because an owner has left.
        round: the last finished one.
        time: Unix seconds of the server.
        spec: fingerprint of the adapter's tensors.
        model: SHA-256 of the base model; empty without one.
        settings: SHA-256 of the federation's settings.
        rule: kind of the merge rule.
        base: hash of the adapter before; empty of a ``start``.
        result: hash of the adapter after.
        count: how many updates are in it.
        root: of the Merkle tree over them (:meth:`Entry.leaf`), sorted by client.
        about: of a start ``adapter`` and ``receipt``, hashes of what it goes on from; of a rollback ``to``,
            the number of the receipt; of a leaving also ``leaf``, of the owner's first update that went.
        previous: hash of the receipt before; empty of the first.
        key: the server's Ed25519 public key.
        authority: SHA-256 of the certificate of the authority that vouches for the key; empty without one.
        attestation: the authority's signature over the key (DER).
        signature: Ed25519, over all the others.
    """

    run: str
    wire: str
    number: int
    kind: Kind
    round: int
    time: int
    spec: str
    model: str
    settings: str
    rule: str
    base: str
    result: str
    count: int
    root: str
    about: Mapping[str, str] = field(default_factory=dict)
    previous: str = ""
    key: str = ""
    authority: str = ""
    attestation: str = ""
    signature: str = ""

    def text(self) -> bytes:
        """What is signed and hashed."""
        content = asdict(self)
        del content["signature"]
        return DOMAIN + _canonical(content)

    def sha256(self) -> str:
        """Its hash, in hex, without the signature: what the next receipt has as ``previous``."""
        return hashlib.sha256(self.text()).hexdigest()

    def line(self) -> bytes:
        """Its line, without a line feed."""
        return _canonical(asdict(self))

    @staticmethod
    def read(line: bytes, who: str) -> Receipt:
        """The receipt of a line; its signature and its place are not checked.

        Raises:
            DecodeError: no receipt, or one that is not in its one form.
        """
        problem = f"{len(line)} bytes"
        if len(line) <= MAX_LINE:
            try:
                receipt = Receipt(**json.loads(line))
                problem = _wrong(receipt)
                if not problem and receipt.line() == line:
                    return receipt
                problem = problem or "another spelling of it"
            except (ValueError, TypeError, RecursionError, AttributeError):
                problem = "another content"
        raise DecodeError(who, expected="a receipt in its one form", got=problem)


def signed(receipt: Receipt, sign: Callable[[bytes], bytes]) -> Receipt:
    """The receipt with the signature of its key."""
    return replace(receipt, signature=sign(receipt.text()).hex())


def require_signature(receipt: Receipt, who: str) -> None:
    """Raise :class:`DecodeError` unless the receipt's key signed it."""
    if not verify_receipt(bytes.fromhex(receipt.key), bytes.fromhex(receipt.signature), receipt.text()):
        raise DecodeError(
            f"{who}: signature",
            expected="one by the receipt's key over all of it",
            got="another",
            hint="The receipt was altered after it was signed.",
        )


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _wrong(receipt: Receipt) -> str:
    """Which field has no value that a receipt has; empty if all are right."""
    numbers = receipt.number, receipt.round, receipt.time, receipt.count
    if not all(type(n) is int and 0 <= n < _MOST for n in numbers):
        return "a number that is none"
    if receipt.kind not in _KINDS:
        return "another kind"
    for name in ("run", "wire", "rule"):
        value = getattr(receipt, name)
        if not isinstance(value, str) or len(value) > 256:
            return f"{name}: no short text"
    for name in ("spec", "settings", "result", "root", "key"):
        if not isinstance(getattr(receipt, name), str) or not _HASH.fullmatch(getattr(receipt, name)):
            return f"{name}: no 32 bytes in hex"
    for name in ("base", "model", "previous", "authority"):
        value = getattr(receipt, name)
        if value != "" and not (isinstance(value, str) and _HASH.fullmatch(value)):
            return f"{name}: no 32 bytes in hex"
    for name in ("attestation", "signature"):
        if not isinstance(getattr(receipt, name), str) or not _HEX.fullmatch(getattr(receipt, name)):
            return f"{name}: no bytes in hex"
    about = receipt.about
    if not isinstance(about, dict) or not all(isinstance(v, str) and len(v) <= 256 for v in about.values()):
        return "about: no texts by name"
    return ""
