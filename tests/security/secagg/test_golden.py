"""The formats of masked sums: these bytes are version 1, on every machine; and bytes that are none.

What others have published is checked against them: RFC 8439's key stream and RFC 7748's agreed point.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headwater.errors import HeadwaterError
from headwater.proto.mask_wire import decode_sum, encode_sum
from headwater.proto.v1 import messages_pb2 as pb
from headwater.proto.wire import decode_reply, decode_request, encode_reply, encode_request
from headwater.protocol.messages import MaskReply, MaskRequest, MaskStep
from headwater.security.secagg import messages
from headwater.security.secagg.agreement import AgreementKey, unseal
from headwater.security.secagg.bounds import GroupBounds, Promise
from headwater.security.secagg.group import Advert, Group, SumRound, commitment, mask_info, task_of
from headwater.security.secagg.messages import Delivery, Reveal
from headwater.security.secagg.ring import RingLayout, RingPart, Words
from headwater.security.secagg.secret import Secret
from headwater.security.secagg.shamir import PRIME, join
from headwater.security.secagg.stream import add_masks

NAMES = ("ann", "ben", "cleo", "dora")
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32).public_key().public_bytes_raw()
    for i, name in enumerate(NAMES)
}
LAYOUT = RingLayout((RingPart("values", 5, -(2**46), 2**46 - 1), RingPart("counts", 3, 0, 500)))
ROUND = SumRound(
    "run-1",
    7,
    bytes(range(16)),
    NAMES,
    LAYOUT,
    Promise(0.25, 0.1),
    task_of(b"c" * 32, [b"p" * 32]),
    NAMES[:3],
)
ADVERTS = tuple(
    Advert(i, bytes([16 * i]) * 32, bytes([16 * i + 1]) * 32, bytes([16 * i + 2]) * 32, bytes([i]) * 64)
    for i in range(len(NAMES))
)
GROUP = Group(ADVERTS, GroupBounds(4, 3, 2, 0))
SHARED, SURVIVORS = np.array([True, True, True, True]), np.array([True, True, False, True])
SHARE, SEALED = bytes(range(33)), bytes(range(messages.SEALED_BYTES))
SEAL_KEY, BOUND_TO = bytes(range(32)), b"the list"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def packed() -> bytes:
    values = [np.array([-(2**46), -1, 0, 1, 2**46 - 1], np.int64), np.array([0, 255, 500], np.int64)]
    return LAYOUT.pack(LAYOUT.to_words(values))


def request(step: MaskStep = MaskStep.LIST, content: bytes = b"\xd0") -> tuple[bytes, bytes]:
    return encode_request(MaskRequest("run-1", 7, "ann", bytes(range(16)), step, content))


# --- the masks ----------------------------------------------------------------------------------------


def test_a_mask_is_the_key_stream_of_rfc_8439() -> None:
    """Appendix A.1, vector 1: key, nonce and counter of zeros. It runs on from part to part."""
    stream = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    words: list[Words] = [np.zeros(3, np.uint32), np.zeros(2, np.uint64)]
    add_masks(words, [(bytes(32), False)])
    assert [word.tobytes() for word in words] == [stream[:12], stream[12:28]]
    add_masks(words, [(bytes(32), True), (SEAL_KEY, True)])
    assert [word.tolist() for word in words] == [
        [2194932423, 2514893351, 2298233459],
        [10387493672478647112, 12934957486432395588],
    ]


def test_two_members_agree_on_the_point_of_rfc_7748() -> None:
    """Section 6.1, Bob with Alice's public key; then HKDF by hand (RFC 5869: no salt, one block)."""
    bob = AgreementKey(
        Secret(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    )
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    point = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    info = mask_info(GROUP, bob.public, alice)
    extracted = hmac.digest(bytes(32), point, "sha256")
    assert bob.agree(alice, info, "alice") == hmac.digest(extracted, info + b"\x01", "sha256")


def test_a_seal_opens_and_shares_give_their_secret() -> None:
    sealed = bytes.fromhex("000102030405060708090a0bfd8c67205a7fc432d2f022aed0db355fa31603c786c4e4404269")
    assert unseal(SEAL_KEY, sealed, BOUND_TO, "ann") == b"two shares"
    known = int.from_bytes(SEAL_KEY, "big")
    shares = {x: ((known + 5 * x + 7 * x * x) % PRIME).to_bytes(33, "big") for x in (2, 3, 9)}
    assert join(shares, "ann").value == SEAL_KEY


# --- the messages -------------------------------------------------------------------------------------

MADE: dict[str, Callable[[], str]] = {
    "round": lambda: ROUND.digest.hex(),
    "task": lambda: ROUND.task.hex(),
    "commitment": lambda: commitment(Secret(SEAL_KEY)).hex(),
    "group digest": lambda: GROUP.digest.hex(),
    "ring": lambda: str(GROUP.ring),
    "list": lambda: sha(GROUP.list_text(ROUND, SHARED, SURVIVORS)),
    "mask info": lambda: sha(mask_info(GROUP, b"b" * 32, b"a" * 32)),
    "vector": lambda: packed().hex(),
    "keys": lambda: sha(ADVERTS[1].to_bytes()),
    "group": lambda: sha(messages.dump_group(GROUP)),
    "shares": lambda: sha(messages.dump_rows({2: SEALED, 0: SEALED})),
    "delivery": lambda: sha(messages.dump_delivery(Delivery(SHARED, {1: SEALED}))),
    "flags": lambda: messages.dump_flags(SURVIVORS).hex(),
    "reveal": lambda: messages.dump_reveal(Reveal({0: SHARE}, {2: SHARE[::-1]})).hex(),
    "certificate": lambda: sha(messages.dump_rows({0: bytes(64), 3: b"s" * 64})),
    "sum": lambda: encode_sum(ROUND, KEYS, [b"p" * 32]).hex(),
    "request": lambda: request()[0].hex(),
    "reply": lambda: encode_reply(
        MaskReply("ann", "run-1", 7, bytes(range(16)), MaskStep.REVEAL, b"\x00\x01")
    ).hex(),
}
GOLDEN = {
    "round": "06f68ff1f479dba2972cf9bb89bab652d20aede75e14dbe07a2bd2fe95c62a61",
    "task": "6e9b520724194bdbab3bd528e32e49d30cb923d9be5531cf32c0192e0660ec9f",
    "commitment": "41f93e6d090354f1eafc819bd78b54f0933fe93ec50a70c89168ff0ba794f59f",
    "group digest": "10cd2936671c9c67f1e879488584ecd221bf6e53fd88a670f5be5c7bab256e08",
    "ring": "[0, 3, 1, 2]",
    "list": "773d94523218aeb87bca543f97cebc1471382dff0f96be4c132658b8a5503c69",
    "mask info": "f3317eedd15b66d903c17654ec1fb2a2a535807a03a8be04ae3617ffbc363a58",
    "vector": "0000000000ffffffffff00000000000100000000ffffffffffc03f00f00300fff404",
    "keys": "083f20ca98d25496a63dc45d631eee1dffd1d8e145a12f46c64a48069b231261",
    "group": "5ea68ec6ed1760e365ae240c947b935fcb7e9590c674348e5bbb8c2353496720",
    "shares": "8edb42e4b52cf1769645a9e46d585c0be6ebd09d1da8d68e1b4fdd4a98782898",
    "delivery": "a0879bd091b05d706fe0921a521e64739389818301d1c2f7dd6d31c179b064b7",
    "flags": "d0",
    "reveal": (
        "0000000100000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20000000"
        "02201f1e1d1c1b1a191817161514131211100f0e0d0c0b0a09080706050403020100"
    ),
    "certificate": "9e3c59503460f43344fc3c08b2d9cf8ff02e9a6fd4ec9d565594b34c678c9ea1",
    "sum": (
        "0a03616e6e0a0362656e0a04636c656f0a04646f726112203b6a27bcceb6a42d62a3a8d02a6f0d7365321577"
        "1de243a63ac048a18b59da2912208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f"
        "6f5c12208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b3941220ed4928c628d1"
        "c2c6eae90338905995612959273a5c63f93636c14614ac8737d11a0300010222207070707070707070707070"
        "7070707070707070707070707070707070707070702a1a0a0676616c756573100518ffffffffffff1f20feff"
        "ffffffff1f2a0d0a06636f756e7473100320e80731000000000000d03f399a9999999999b93f4003"
    ),
    "request": "2a220a0572756e2d3110071a03616e6e2210000102030405060708090a0b0c0d0e0f2804",
    "reply": "32260a03616e6e120572756e2d3118072210000102030405060708090a0b0c0d0e0f280532020001",
}
"""Of what is longer than a few lines, SHA-256."""


@pytest.mark.parametrize("name", MADE)
def test_these_bytes_are_made(name: str) -> None:
    assert MADE[name]() == GOLDEN[name]


def test_these_bytes_are_read() -> None:
    found = LAYOUT.to_values(LAYOUT.unpack(bytes.fromhex(GOLDEN["vector"]), "ann"))
    assert [part.tolist() for part in found] == [[-(2**46), -1, 0, 1, 2**46 - 1], [0, 255, 500]]
    stated = decode_sum(changed_sum())
    assert (stated.names, stated.enrolled, stated.exactly) == (NAMES, KEYS, NAMES[:3])
    assert decode_sum(bytes.fromhex(GOLDEN["sum"])) == stated
    assert (stated.plans, stated.layout, stated.promise) == ((b"p" * 32,), LAYOUT, ROUND.promise)
    assert messages.load_group(messages.dump_group(GROUP)) == GROUP
    delivery = messages.load_delivery(messages.dump_delivery(Delivery(SHARED, {1: SEALED})), 4)
    assert (delivery.shared.tolist(), delivery.sealed) == (SHARED.tolist(), {1: SEALED})
    assert messages.load_flags(bytes.fromhex(GOLDEN["flags"]), 4).tolist() == SURVIVORS.tolist()
    reveal = messages.load_reveal(bytes.fromhex(GOLDEN["reveal"]), 4)
    assert reveal == Reveal({0: SHARE}, {2: SHARE[::-1]})
    asked = decode_request(bytes.fromhex(GOLDEN["request"]), b"\xd0")
    assert asked == MaskRequest("run-1", 7, "ann", bytes(range(16)), MaskStep.LIST, b"\xd0")
    reply = decode_reply(bytes.fromhex(GOLDEN["reply"]), max_bytes=2)
    assert reply == MaskReply("ann", "run-1", 7, bytes(range(16)), MaskStep.REVEAL, b"\x00\x01")


def changed_sum(**fields: Any) -> bytes:
    """The golden sum with other fields."""
    message = pb.MaskedSum.FromString(bytes.fromhex(GOLDEN["sum"]))
    for name, value in fields.items():
        if isinstance(value, list):
            message.ClearField(name)
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message.SerializeToString()


def row(member: int, data: bytes = SHARE) -> bytes:
    return member.to_bytes(4, "big") + data


SUM, HEAD = bytes.fromhex(GOLDEN["sum"]), (4).to_bytes(4, "big")
REVEAL = bytes.fromhex(GOLDEN["reveal"])
NEGATIVE: dict[str, Callable[[], Any]] = {
    "a vector that is short": lambda: LAYOUT.unpack(packed()[:-1], "ann"),
    "keys that are long": lambda: Advert.from_bytes(ADVERTS[0].to_bytes() + b"x"),
    "a group of one less than it says": lambda: messages.load_group(messages.dump_group(GROUP)[:-164]),
    "a group of more than were asked": lambda: messages.load_group(messages.dump_group(GROUP), most=3),
    "a group of nobody": lambda: messages.load_group(bytes(16)),
    "a group out of order": lambda: messages.load_group(
        messages.dump_group(GROUP)[:16] + b"".join(a.to_bytes() for a in ADVERTS[::-1])
    ),
    "a member twice": lambda: messages.load_rows(row(1) + row(1), 33, 4),
    "a member that is none": lambda: messages.load_rows(row(4), 33, 4),
    "rows of more than all": lambda: messages.load_rows(b"".join(map(row, range(5))), 33, 4),
    "half a row": lambda: messages.load_rows(row(1)[:-1], 33, 4),
    "flags of others": lambda: messages.load_flags(b"\xd0\x00", 4),
    "a delivery without flags": lambda: messages.load_delivery(b"", 4),
    "more seeds than members": lambda: messages.load_reveal((5).to_bytes(4, "big") + REVEAL[4:], 4),
    "more seeds than there are": lambda: messages.load_reveal((3).to_bytes(4, "big") + REVEAL[4:], 4),
    "a seal that was altered": lambda: unseal(SEAL_KEY, bytes(38), BOUND_TO, "ann"),
    "a sum that is cut": lambda: decode_sum(SUM[:-3]),
    "a name twice": lambda: decode_sum(changed_sum(names=["ann", "ann", "cleo", "dora"])),
    "a key too few": lambda: decode_sum(changed_sum(keys=list(KEYS.values())[:3])),
    "a key that is none": lambda: decode_sum(changed_sum(keys=[*list(KEYS.values())[:3], b"short"])),
    "survivors out of order": lambda: decode_sum(changed_sum(exactly=[1, 0])),
    "survivors that were not asked": lambda: decode_sum(changed_sum(exactly=[0, 4])),
    "no plan": lambda: decode_sum(changed_sum(plans=[])),
    "half of a plan": lambda: decode_sum(changed_sum(plans=[b"p" * 31])),
    "half may drop out": lambda: decode_sum(changed_sum(dropouts=0.5)),
    "fewer than none collude": lambda: decode_sum(changed_sum(colluding=-0.1)),
    "no number": lambda: decode_sum(changed_sum(colluding=float("nan"))),
    "a part of 64 bits": lambda: decode_sum(
        changed_sum(parts=[pb.RingPart(name="p", size=1, low=-(2**62), high=2**62)])
    ),
    "parts without end": lambda: decode_sum(changed_sum(parts=[pb.RingPart(name="p")] * 17)),
    "a step that is none": lambda: decode_request(request()[0][:-1] + b"\x09", b""),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_these_bytes_are_none(name: str) -> None:
    with pytest.raises(HeadwaterError):
        NEGATIVE[name]()
