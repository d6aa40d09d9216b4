from __future__ import annotations

import base64
import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import DecodeError, UpdateRejected
from headwater.security import public_keys
from headwater.security.enrolment import PREFIX, find_requests, make_request, read_request, same_fingerprint
from headwater.security.signing import Identity
from tests.security.claims import CLAIM, REPLY, REPLY_SIGNATURE
from tests.security.people import ANN, BOB

# ECDSA draws a nonce, so a golden line is read, not made
GOLDEN = (
    "headwater-enrol-v1:A2FuboqI4910CfGV_VLbLTy6XXLKZwm_HZQSG_N0iAG0D29cBAjZmQV7o9LZaSYARcVbl_CJAllZp"
    "vQ01lHSB9GfuW6eT-Dobr4OZPhblqnHUpXfYY6A8fpbGzztt7_o3_1tunSyddh1vGzEPpBOUF8larQlX_1D6U054i1hUB5wC"
    "pQOgCFirPHODPyEH_oOFeJu9p7dEcuvihcYo5eFfZs_lKRI8ZJGe8N49qfRHsgtiFcZIasSYgscjDYT9DPM2BpOLgwwZQIwS"
    "1ZIaytyIo-aBVmsflKAjxgm7QgdYYOoFuLvfh0duyquKrwqF7w2mmVL8h1BfwEKAjEAyyx0ExJ3SkPwlQlPaMRU_5aYGoL_f"
    "e4NJbhlm1W_O6ZMw843Qx6MZ1cRJYcLF5TT"
)
DOMAIN = b"headwater enrol v1\0"
SHA256 = ec.ECDSA(hashes.SHA256())


def body_of(line: str) -> bytes:
    encoded = line.removeprefix(PREFIX)
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def line_of(body: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


REQUEST = make_request(ANN)
BODY = body_of(REQUEST)
SIGNED = 1 + 3 + 32 + 97


def test_golden():
    assert read_request(GOLDEN) == ANN.public


def test_the_pages_vectors_are_these():
    page = (Path(__file__).parents[2] / "docs/reference/identity.md").read_text(encoding="utf-8")
    lines = set(page.splitlines())
    for start in range(0, len(GOLDEN), 96):
        assert GOLDEN[start : start + 96] in lines
    assert {f"{name}: {value}" for name, value in CLAIM.headers().items()} <= lines
    assert {REPLY.hex(), REPLY_SIGNATURE[:64], REPLY_SIGNATURE[64:]} <= lines
    assert f"signing key  {ANN.public.signing_key.hex()}" in lines
    assert f"fingerprint  {ANN.public.fingerprint()}" in lines
    assert ANN.public.node_key.decode() in page


def test_round_trip_in_one_line():
    assert read_request(f"  {REQUEST}\r\n") == ANN.public
    assert REQUEST.isprintable()
    assert REQUEST.isascii()
    longest = make_request(Identity("n" * 64, ANN.signing_key, ANN.node_key))
    assert len(longest) < 520
    assert read_request(longest).name == "n" * 64


def test_by_hand():
    """The page's layout, taken apart without the package."""
    assert BODY[:4] == b"\x03ann"
    text = DOMAIN + BODY[:SIGNED]
    Ed25519PublicKey.from_public_bytes(BODY[4:36]).verify(BODY[SIGNED : SIGNED + 64], text)
    node = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), BODY[36:SIGNED])
    node.verify(BODY[SIGNED + 64 :], text, SHA256)
    pem = node.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert pem == ANN.public.node_key


@given(st.integers(0, 8 * len(BODY) - 1))
@settings(max_examples=200)
def test_any_flipped_bit_is_refused(bit):
    changed = bytearray(BODY)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((DecodeError, UpdateRejected)):
        read_request(line_of(bytes(changed)))


@given(st.integers(0, len(BODY) - 1), st.binary(max_size=3))
def test_a_cut_or_longer_line_is_refused(end, more):
    with pytest.raises((DecodeError, UpdateRejected)):
        read_request(line_of(BODY[:end]))
    with pytest.raises((DecodeError, UpdateRejected)):
        read_request(line_of(BODY + b"\0" + more))


@given(st.text(max_size=300) | st.text(max_size=300).map(lambda t: PREFIX + t))
def test_any_text_is_a_decode_error(text):
    with pytest.raises(DecodeError, match="enrolment request"):
        read_request(text)


@given(st.binary(max_size=400))
def test_any_body_is_refused(body):
    with pytest.raises((DecodeError, UpdateRejected)):
        read_request(line_of(body))


@pytest.mark.parametrize(
    "line",
    [
        "", REQUEST[:-1], REQUEST + "A", REQUEST.replace("v1", "v2"), REQUEST.upper(),
        PREFIX, f"{REQUEST}\n{REQUEST}", "x" * 10**7, PREFIX + "A" * 2048,
        REQUEST[:100] + "\n" + REQUEST[101:], PREFIX + "é" * 100, PREFIX + "\ud800" * 8,
    ],
)  # fmt: skip
def test_other_lines_are_refused(line):
    with pytest.raises((DecodeError, UpdateRejected)) as caught:
        read_request(line)
    assert len(str(caught.value)) < 500


def wrapped(line: str, width: int, start: str = "", end: str = "") -> str:
    return "\n".join(start + line[at : at + width] + end for at in range(0, len(line), width))


@pytest.mark.parametrize(
    "text",
    [
        wrapped(REQUEST, 76),
        wrapped(REQUEST, 76).replace("\n", "\r\n"),
        wrapped(REQUEST, 76).replace("\n", " "),
        wrapped(REQUEST, 72, "> "),
        wrapped(REQUEST, 60, "> > > "),
        wrapped(REQUEST, 60, "   | "),
        wrapped(REQUEST, 75, end="=")[:-1],
        wrapped(REQUEST, 75, end="=\r"),
        wrapped(REQUEST, 12),
        "\u00ad".join(REQUEST),
        "\ufeff" + wrapped(REQUEST, 40, end="\u200b"),
        REQUEST.replace("-", "\u2011"),
        REQUEST.replace(":", ": "),
        REQUEST + "=",
        f"<{REQUEST}>",
        f'"{REQUEST}".',
        f"Here it is: {REQUEST}, as you asked. Ann",
        f"Hello,\n\n> my line is\n{wrapped(REQUEST, 70, '> ')}\nThanks\nAnn",
        f"{REQUEST}\n\nGive this line to the organiser. It holds no secret.\nCompare the fingerprint",
    ],
)  # fmt: skip
def test_what_mail_programs_do_to_a_line_is_undone(text):
    assert find_requests(text) == [REQUEST]
    assert read_request(text) == ANN.public


def test_several_requests_in_one_text():
    other = make_request(BOB)
    assert find_requests(f"{wrapped(REQUEST, 70, '> ')}\n{wrapped(other, 70)}\n{REQUEST}") == [
        REQUEST,
        other,
        REQUEST,
    ]
    assert find_requests("nothing of the kind") == []


@given(st.lists(st.integers(1, 400), max_size=30), st.sampled_from(["\n", " ", "\r\n> ", "=\n", "\u00ad"]))
def test_a_line_wrapped_anywhere_is_put_together(places, between):
    cuts = sorted({min(place, len(REQUEST)) for place in places})
    pieces = [REQUEST[a:b] for a, b in zip([0, *cuts], [*cuts, len(REQUEST)], strict=True)]
    assert find_requests(between.join(pieces)) == [REQUEST]


@given(st.integers(0, len(REQUEST) - len(PREFIX) - 1), st.integers(20, 90))
def test_a_wrapped_line_that_lacks_a_character_is_refused_and_says_that_it_was_wrapped(at, width):
    place = len(PREFIX) + at
    with pytest.raises(DecodeError, match="wrapped on its way"):
        find_requests(wrapped(REQUEST[:place] + REQUEST[place + 1 :], width))


@given(st.text(max_size=300), st.text(alphabet="> \n=-_Aa0:.\u00ad", max_size=200))
@settings(max_examples=300)
def test_any_text_around_a_prefix_is_read_or_refused(before, behind):
    with contextlib.suppress(DecodeError, UpdateRejected):
        assert find_requests(before + PREFIX + behind) == []


@pytest.mark.parametrize(
    "told",
    ["7449-410D-2F89-0D02-0645-9EA1-6500-417D", "7449 410d 2f89 0d02 0645 9ea1 6500 417d",
     "7449410d2f890d0206459ea16500417d", " 7449\u2011410d\u20132f89-0d02-0645-9ea1-6500-417d\n"],
)  # fmt: skip
def test_a_fingerprint_is_the_same_however_it_is_written(told):
    assert same_fingerprint(ANN.public.fingerprint(), told)


@pytest.mark.parametrize("told", ["", "7449", "7449-410d-2f89-0d02-0645-9ea1-6500-417e", "x" * 32])
def test_another_fingerprint_is_another(told):
    assert not same_fingerprint(ANN.public.fingerprint(), told)
    assert not same_fingerprint(told, told) or len(told) > 32


def test_a_line_is_bounded_before_it_is_decoded():
    with pytest.raises(DecodeError, match="more than 2048 characters"):
        read_request(PREFIX + "A" * 2048)


def test_one_alphabet():
    other = base64.b64encode(body_of(GOLDEN)).decode().rstrip("=")
    assert PREFIX + other != GOLDEN
    with pytest.raises(DecodeError):
        read_request(PREFIX + other)


def by_hand(name: bytes, key: bytes, point: bytes, signing_proof, node_proof) -> str:
    binding = bytes([len(name)]) + name + key + point
    text = DOMAIN + binding
    return line_of(binding + signing_proof(text) + node_proof(text))


ANN_KEY, ANN_POINT = BODY[4:36], BODY[36:SIGNED]
BOB_BODY = body_of(make_request(BOB))
BOB_KEY, BOB_POINT = BOB_BODY[4:36], BOB_BODY[36:SIGNED]


def sign(who: Identity):
    return who.signing_key.sign, lambda text: who.node_key.sign(text, SHA256)


def test_nobody_enrols_a_key_that_he_does_not_have():
    ann_signs, _ = sign(ANN)
    bob_signs, bob_node = sign(BOB)
    assert read_request(by_hand(b"eve", ANN_KEY, BOB_POINT, ann_signs, bob_node)).name == "eve"
    with pytest.raises(UpdateRejected, match=r"request of bob.*wrong one by its node key"):
        read_request(by_hand(b"bob", BOB_KEY, ANN_POINT, bob_signs, bob_node))
    with pytest.raises(UpdateRejected, match=r"request of bob.*wrong one by its signing key"):
        read_request(by_hand(b"bob", ANN_KEY, BOB_POINT, bob_signs, bob_node))
    # proofs of a true request do not carry over to another name
    with pytest.raises(UpdateRejected):
        read_request(line_of(b"\x03eve" + BODY[4:]))


def test_a_signature_made_for_another_use_is_no_proof():
    """What the agent signs every day must not enrol its keys elsewhere."""
    _, ann_node = sign(ANN)
    with pytest.raises(UpdateRejected):
        read_request(by_hand(b"eve", ANN_KEY, ANN_POINT, ANN.sign_reply, ann_node))


def test_weak_or_foreign_keys():
    ann_signs, ann_node = sign(ANN)
    with pytest.raises(DecodeError, match="small order"):
        read_request(by_hand(b"eve", b"\1" + bytes(31), ANN_POINT, lambda _: b"\1" + bytes(63), ann_node))
    with pytest.raises(DecodeError, match="node key"):
        read_request(by_hand(b"eve", ANN_KEY, b"\4" + bytes(96), ann_signs, ann_node))
    compressed = ANN.node_key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )
    with pytest.raises(DecodeError, match="a point of P-384 in 97 bytes"):
        public_keys.pem_of_point(compressed, "a key")
    with pytest.raises((DecodeError, UpdateRejected)):
        read_request(by_hand(b"eve", ANN_KEY, compressed, ann_signs, ann_node))


@pytest.mark.parametrize("name", [b"", b"a/b", b"\xff", b".", b"a" * 65, b"a\n"])
def test_names_that_cannot_be_enrolled(name):
    ann_signs, ann_node = sign(ANN)
    with pytest.raises(DecodeError):
        read_request(by_hand(name, ANN_KEY, ANN_POINT, ann_signs, ann_node))
