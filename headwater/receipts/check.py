"""What receipts prove to whoever holds them: :func:`check_chain`, :func:`lineage`, :func:`own_updates`.

Nothing here asks a server. Each refusal names the receipt and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from headwater.errors import DecodeError
from headwater.receipts.merkle import root
from headwater.receipts.receipt import Entry, Receipt, require_signature
from headwater.receipts.sent import Sent
from headwater.security.receipt_keys import short, vouches

_ALTERED = "The chain was altered, or a part of it is missing: ask the organiser for all of it."


def check_chain(
    receipts: Sequence[Receipt], who: str, *, ca_pem: bytes | None = None, key: str | None = None
) -> None:
    """Refuse receipts that are no chain from its first link on, or that others signed.

    Args:
        receipts: from number 0 on, in order.
        who: has them, for messages.
        ca_pem: certificate of the authority that must vouch for every key; not asked if None.
        key: fingerprint (:func:`headwater.security.receipt_keys.short`) of the one key that may sign; any if
            None.

    Raises:
        DecodeError: which receipt, and what is wrong with it.
        StorageError: ``ca_pem`` is no certificate.
    """
    if not receipts:
        raise DecodeError(who, expected="receipts", got="none", hint="The run is older than receipts.")
    before: Receipt | None = None
    vouched: set[tuple[str, str]] = set()
    for place, receipt in enumerate(receipts):
        name = f"{who}: receipt {receipt.number}"
        if receipt.number != place:
            _refuse(name, f"receipt {place}", f"receipt {receipt.number}")
        require_signature(receipt, name)
        _check_link(name, receipt, before, receipts)
        if key is not None and short(receipt.key) != key:
            _refuse(f"{name}: key", key, short(receipt.key))
        proof = receipt.key, receipt.attestation
        if ca_pem is not None and proof not in vouched:
            if not vouches(ca_pem, bytes.fromhex(receipt.key), bytes.fromhex(receipt.attestation)):
                _refuse(f"{name}: key", "one that this authority vouches for", short(receipt.key))
            vouched.add(proof)
        before = receipt


def _check_link(name: str, receipt: Receipt, before: Receipt | None, receipts: Sequence[Receipt]) -> None:
    """What a receipt must share with the one before, and what its kind asks for."""
    if before is None:
        if receipt.previous:
            _refuse(f"{name}: previous", "none", receipt.previous)
    else:
        for part, expected, got in (
            ("previous", before.sha256(), receipt.previous),
            ("run", before.run, receipt.run),
            ("spec", before.spec, receipt.spec),
            ("model", before.model, receipt.model),
            ("base", before.result, receipt.base),
        ):
            if expected != got:
                _refuse(f"{name}: {part}", expected, got)
        expected_round = before.round + (receipt.kind == "round")
        if receipt.round != expected_round:
            _refuse(f"{name}: round", str(expected_round), str(receipt.round))
    if (receipt.kind == "start") != (receipt.number == 0 and not receipt.base):
        _refuse(f"{name}: kind", "a start as the first receipt, and nowhere else", receipt.kind)
    if receipt.kind != "round" and (receipt.count, receipt.root) != (0, root([]).hex()):
        _refuse(f"{name}: count", "no updates outside rounds", str(receipt.count))
    if receipt.kind in ("rollback", "leaving"):
        to = _gone_back_to(receipt)
        if to is None and receipts[0].kind == "start":  # else the run may be older than its receipts
            _refuse(f"{name}: to", "the receipt that it goes back to", receipt.about.get("to", ""))
        if to is not None and not (to < receipt.number and receipts[to].result == receipt.result):
            _refuse(f"{name}: result", f"the adapter of an earlier receipt, {to}", receipt.result)


def receipt_of(receipts: Sequence[Receipt], adapter_sha256: str, who: str) -> Receipt:
    """The last receipt whose result is this adapter.

    Raises:
        DecodeError: none is.
    """
    for receipt in reversed(receipts):
        if receipt.result == adapter_sha256:
            return receipt
    raise DecodeError(
        who,
        expected="an adapter that a receipt of the run names",
        got=f"sha256 {adapter_sha256}",
        hint="Its values are not those that any round gave, or the receipts end before it.",
    )


def lineage(receipts: Sequence[Receipt], receipt: Receipt) -> list[Receipt]:
    """The receipts that led to this one, it first: without what rollbacks and leavings gave up.

    It ends at the start, or where the run is older than its receipts.
    """
    found = [receipt]
    while found[-1].number > 0:
        last = found[-1]
        to = last.number - 1 if last.kind == "round" else _gone_back_to(last)
        if to is None:
            break
        found.append(receipts[to])
    return found


def check_updates(receipts: Sequence[Receipt], leaves: Mapping[int, Sequence[bytes]], who: str) -> None:
    """Refuse leaves that are not those of their receipts.

    Args:
        receipts: the chain.
        leaves: leaf hashes by receipt's number, in the tree's order.
        who: has them, for messages.

    Raises:
        DecodeError: which receipt's.
    """
    for receipt in receipts:
        found = leaves.get(receipt.number)
        if found is not None and (len(found), root(found).hex()) != (receipt.count, receipt.root):
            _refuse(f"{who}: receipt {receipt.number}", "the updates that it has the root of", "others")


def own_updates(
    receipts: Sequence[Receipt], leaves: Mapping[int, Sequence[bytes]], sent: Sequence[Sent]
) -> tuple[list[Sent], list[Sent]]:
    """Which of an owner's updates are in these receipts, and which are in none of them.

    Args:
        receipts: of the adapter's lineage.
        leaves: see :func:`check_updates`, which must have passed.
        sent: what its device sent to this run.

    Returns:
        Those that are in, and those that are not. What an edge aggregator added up is in neither: its
        receipts have a hash of the sum.
    """
    present = {leaf for receipt in receipts for leaf in leaves.get(receipt.number, ())}
    inside = [one for one in sent if Entry(one.client, one.round, one.sha256).leaf() in present]
    return inside, [one for one in sent if one not in inside]


def _gone_back_to(receipt: Receipt) -> int | None:
    """The receipt that a rollback or a leaving went back to; None where it is older than the receipts."""
    to = receipt.about.get("to", "")
    return int(to) if to.isascii() and to.isdigit() else None


def _refuse(who: str, expected: str, got: str) -> NoReturn:
    raise DecodeError(who, expected=expected, got=got or "none", hint=_ALTERED)
