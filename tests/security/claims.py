"""A reply and a request, signed by Ann, whose bytes are written down."""

from __future__ import annotations

import hashlib

from headwater.security.signing import RequestClaim

REPLY = b"\x0a\x03any bytes\x00\xff"
REPLY_SIGNATURE = (
    "45e9f8737639d92d100c799fe927d7b51dbb638fa4eb05541c9d0ff78fd4909e"
    "8856dc0a2e6bfbc26b38b6ca857e194cecdaad3ae602bd5e2d9781b96706900e"
)
CLAIM = RequestClaim(
    client="ann",
    version="0.3.0",
    instance="00112233445566778899aabbccddeeff",
    time_ms=1_764_547_200_123,
    nonce="ffeeddccbbaa99887766554433221100",
    length=3,
    body_sha256=hashlib.sha256(b"abc").hexdigest(),
    signature=bytes.fromhex(
        "5a75b3cecda096c2c587b792f2e9292d7a97bf315889d8c5a81c71e1b55c481e"
        "97db19a1c9d0c4b78587f506095522bbd8d6504d0dcf3b64a61b3ecab027880f"
    ),
)
TARGET = {"method": "POST", "path": "/v1/fleet/pull-messages"}
REQUEST = {"body": b"abc", "instance": "ab" * 16, "version": "0.3.0", "now_ms": 12345}


def flipped(data: bytes, bit: int) -> bytes:
    bit %= 8 * len(data)
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
