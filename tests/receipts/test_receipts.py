"""Receipts: golden bytes, an oracle for the tree, and a refusal by name for each thing that is altered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import DecodeError
from headwater.receipts.bundle import bundle, read_leaves
from headwater.receipts.check import check_chain, check_updates, lineage, own_updates, receipt_of
from headwater.receipts.merkle import leaf_hash, root
from headwater.receipts.receipt import Entry, Receipt, signed
from headwater.receipts.sent import Sent, SentLog, read_sent
from headwater.receipts.written import RECEIPTS, UPDATES, Head, ReceiptBook, read_receipts, read_updates
from headwater.security.certificates import Authority
from headwater.security.receipt_keys import ReceiptKey, short

# the reference leaves and roots of Certificate Transparency's merkletree tests, for RFC 6962
CT_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
KEY = ReceiptKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))  # of a test: never the product's
SPEC, MODEL, SETTINGS = "ab" * 32, "cd" * 32, "ef" * 32


def hashed(number):
    return f"{number:064x}"


def book(folder, key=KEY, run="r1"):
    return ReceiptBook(
        folder, run=run, wire=run, spec=SPEC, model=MODEL, key=lambda: key, now=lambda: 1_800_000_000.5
    )


def add(found, kind="round", *, round, base, result, entries=(), about=None):
    return found.add(
        kind,
        round=round,
        base=base,
        result=result,
        settings=SETTINGS,
        rule="mean",
        entries=entries,
        about=about,
    )


def update(client, number):
    return Entry(client, number, hashlib.sha256(f"{client} {number}".encode()).hexdigest())


@pytest.fixture
def written(tmp_path):
    """Three rounds, a rollback to the first one's adapter, and a fourth."""
    found = book(tmp_path)
    add(found, "start", round=0, base="", result=hashed(100))
    for n in (1, 2, 3):
        add(
            found,
            round=n,
            base=hashed(99 + n),
            result=hashed(100 + n),
            entries=[update(c, n) for c in ("ben", "ann", "cleo")],
        )
    to = {"to": str(found.number_of(hashed(101)))}
    add(found, "rollback", round=3, base=hashed(103), result=hashed(101), about=to)
    add(found, round=4, base=hashed(101), result=hashed(104), entries=[update("ann", 4)])
    return tmp_path


@pytest.mark.parametrize("count", range(1, 9))
def test_the_tree_is_that_of_certificate_transparency(count):
    leaves = [leaf_hash(bytes.fromhex(text)) for text in CT_LEAVES[:count]]
    assert root(leaves).hex() == CT_ROOTS[count - 1]


def test_a_receipt_has_these_bytes():
    entry = Entry("ann", 7, "11" * 32)
    assert entry.leaf().hex() == "0d71bacb2950c088d1b9b2fe30285726d1bc4d5945826c89e32f3ec57ffc3e6b"
    receipt = Receipt(
        run="r1", wire="r1", number=1, kind="round", round=7, time=1_800_000_000, spec=SPEC, model=MODEL,
        settings=SETTINGS, rule="mean", base=hashed(1), result=hashed(2), count=1,
        root=root([entry.leaf()]).hex(), previous=hashed(3), key=KEY.public,
    )  # fmt: skip
    receipt = signed(receipt, KEY.sign)
    assert receipt.text().startswith(b'headwater receipt v1\0{"about":{},"attestation":"","authority":"",')
    assert receipt.sha256() == "fd44930431e0e633fe4f6ef6760278b312e42c22fdf135b5c7b42c0964b55123"
    assert receipt.signature[:32] == "d96959a83b25d583b4745c77f09ea731"
    assert Receipt.read(receipt.line(), "here") == receipt


def test_what_was_written_is_a_chain(written):
    receipts = read_receipts(written / RECEIPTS)
    check_chain(receipts, "here", key=short(KEY.public))
    assert [r.kind for r in receipts] == ["start", "round", "round", "round", "rollback", "round"]
    assert [r.number for r in lineage(receipts, receipts[-1])] == [5, 4, 1, 0]
    leaves = {n: [e.leaf() for e in es] for n, es in read_updates(written / UPDATES).items()}
    check_updates(receipts, leaves, "here")
    line = lineage(receipts, receipt_of(receipts, hashed(104), "here"))
    sent = [Sent("ann", "r1", n, update("ann", n).sha256, 0) for n in (1, 2, 4)]
    inside, outside = own_updates(line, leaves, sent)
    assert [one.round for one in inside] == [1, 4]
    assert [one.round for one in outside] == [2]  # a rollback gave it up


ALTERED = {
    "run": "r2", "wire": "r2", "number": 7, "kind": "start", "round": 9, "time": 5, "spec": "00" * 32,
    "model": "00" * 32, "settings": "00" * 32, "rule": "ties", "base": "00" * 32, "result": "00" * 32,
    "count": 2, "root": "00" * 32, "about": {"to": "0"}, "previous": "00" * 32, "key": "12" * 32,
    "authority": "00" * 32, "attestation": "00", "signature": "00" * 64,
}  # fmt: skip


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("name", [field.name for field in fields(Receipt)])
def test_each_field_that_is_altered_is_refused(written, name, place):
    receipts = read_receipts(written / RECEIPTS)
    other = {**ALTERED, "kind": "leaving"} if place == 0 else ALTERED
    receipts[place] = replace(receipts[place], **{name: other[name]})
    with pytest.raises(DecodeError, match=r"receipt \d+"):
        check_chain(receipts, "here")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("number", 7, "receipt 2"),
        ("previous", "00" * 32, "previous"),
        ("run", "r2", "run"),
        ("spec", "00" * 32, "spec"),
        ("model", "00" * 32, "model"),
        ("base", "00" * 32, "base"),
        ("round", 9, "round"),
        ("kind", "start", "round"),
        ("kind", "rollback", "round"),
    ],
)
def test_who_has_the_key_cannot_bend_the_chain(written, name, value, said):
    receipts = read_receipts(written / RECEIPTS)
    receipts[2] = signed(replace(receipts[2], **{name: value}), KEY.sign)
    with pytest.raises(DecodeError, match=said):
        check_chain(receipts, "here")


def test_a_rollback_names_an_adapter_that_was(written):
    receipts = read_receipts(written / RECEIPTS)
    receipts[4] = signed(replace(receipts[4], about={"to": "2"}), KEY.sign)
    with pytest.raises(DecodeError, match="receipt 4: result"):
        check_chain(receipts[:5], "here")


def test_a_rollback_to_nowhere_brings_in_no_adapter(written):
    """A server that signs one would give any adapter a whole chain, and a lineage that nobody sees."""
    receipts = read_receipts(written / RECEIPTS)[:4]
    found = receipts[3]
    back = replace(found, number=4, kind="rollback", base=found.result, result=hashed(666), count=0)
    back = replace(back, root=root([]).hex(), about={}, previous=found.sha256())
    back = signed(back, KEY.sign)
    with pytest.raises(DecodeError, match="receipt 4: to"):
        check_chain([*receipts, back], "here")


@pytest.mark.parametrize("gone", [0, 2, 4])
def test_a_missing_receipt_is_named(written, gone):
    receipts = read_receipts(written / RECEIPTS)
    del receipts[gone]
    with pytest.raises(DecodeError, match=f"receipt {gone}"):
        check_chain(receipts, "here")


def test_who_may_sign(written, tmp_path):
    authority, stranger = Authority.create("one"), Authority.create("two")
    key = KEY.vouched_for(authority)
    add(book(tmp_path / "other", key), "start", round=0, base="", result=hashed(1))
    receipts = read_receipts(tmp_path / "other" / RECEIPTS)
    check_chain(receipts, "here", ca_pem=authority.certificate_pem)
    with pytest.raises(DecodeError, match="authority vouches"):
        check_chain(receipts, "here", ca_pem=stranger.certificate_pem)
    with pytest.raises(DecodeError, match="receipt 0: key"):
        check_chain(receipts, "here", key="0000-0000")
    with pytest.raises(DecodeError, match="authority vouches"):  # a simulation's key: nobody does
        check_chain(read_receipts(written / RECEIPTS), "here", ca_pem=authority.certificate_pem)


def test_other_updates_than_the_root_says_are_refused(written):
    receipts = read_receipts(written / RECEIPTS)
    leaves = {n: [e.leaf() for e in es] for n, es in read_updates(written / UPDATES).items()}
    leaves[2] = leaves[2][:-1]
    with pytest.raises(DecodeError, match="receipt 2"):
        check_updates(receipts, leaves, "here")


def test_an_export_ends_with_its_adapter_and_names_nobody(written, tmp_path):
    files = bundle(written, hashed(102))
    folder = tmp_path / "export"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
        assert b"ann" not in content
        assert b"cleo" not in content
    receipts = read_receipts(folder / RECEIPTS)
    assert [r.number for r in receipts] == [0, 1, 2]
    check_updates(receipts, read_leaves(folder / "receipt_leaves.jsonl"), "here")
    assert bundle(written, hashed(5)) == {}


@pytest.mark.parametrize("after", range(6))
def test_what_a_crash_left_before_its_checkpoint_is_dropped(written, after):
    receipts = read_receipts(written / RECEIPTS)
    with (written / RECEIPTS).open("ab") as file:
        file.write(b'{"torn')
    found = book(written)
    found.keep_through(Head(after, receipts[after].sha256()))
    assert read_receipts(written / RECEIPTS) == receipts[: after + 1]
    assert sorted(read_updates(written / UPDATES)) == list(range(after + 1))
    last = receipts[after]
    add(found, round=last.round + 1, base=last.result, result=hashed(9))
    check_chain(read_receipts(written / RECEIPTS), "here")


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
).map(lambda content: json.dumps(content).encode()))  # fmt: skip
def test_other_bytes_are_refused(line):
    with pytest.raises(DecodeError):
        Receipt.read(line, "here")


@pytest.mark.parametrize("name", [field.name for field in fields(Receipt)])
@pytest.mark.parametrize("value", [None, -1, 2.0, True, [], "zz", "x" * 20_000, {"to": 1}, 2**60])
def test_fields_of_other_types_are_refused(written, name, value):
    content = json.loads((written / RECEIPTS).read_bytes().splitlines()[1])
    if name in ("run", "wire", "rule") and value == "zz":
        return  # a text like any other
    line = json.dumps({**content, name: value}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(DecodeError):
        Receipt.read(line, "here")


def test_an_owner_notes_each_update_once(tmp_path):
    log = SentLog(tmp_path / "sent.jsonl")
    for data in (b"one", b"two", b"one"):
        log.note("ann", "r1", 3, data, 5.5)
    SentLog(tmp_path / "sent.jsonl").note("ann", "r1", 3, b"two", 7.0)
    assert [one.time for one in read_sent(tmp_path / "sent.jsonl")] == [5, 5]
