"""Bytes of strangers are read or refused, by every reader: mutations of right bytes, and what fuzzing kept.

``make fuzz`` goes on from here with coverage for minutes; see scripts/fuzz.py.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.table import CODEC_IDS, codec_by_id
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.state import StateSpec, TensorSpec
from tests.fuzz.decoders import FAMILIES, SPECS
from tests.laws.codec_laws import mutations

CORPUS = Path(__file__).parent / "corpus"
SCALES = [
    struct.pack("<I", word)
    for word in (
        0x7FC00000,
        0xFFC00001,
        0x7F800000,
        0xFF800000,
        0x00000001,
        0x80000001,
        0x007FFFFF,
        0x7F7FFFFF,
    )
]
"""NaN, ±∞, subnormals, the largest: little-endian fp32."""
HUGE = [b"\xff" * 8, b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x01", struct.pack("<Q", 2**62), b"\x00" * 8]
"""Counts that nobody has; a varint with padding."""


@pytest.mark.parametrize("name", FAMILIES)
def test_right_bytes_are_read(name):
    family = FAMILIES[name]
    assert family.seeds
    assert all(family.accepts(data) for data in family.seeds)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_beginning_is_read_or_refused(name):
    family = FAMILIES[name]
    for data in {min(family.seeds, key=len), sorted(family.seeds, key=len)[len(family.seeds) // 2]}:
        for length in range(0, len(data), max(1, len(data) // 60)):
            family.accepts(data[:length])


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name, data):
    family = FAMILIES[name]
    body = data.draw(st.sampled_from(sorted(family.seeds, key=len)[:6]))
    if data.draw(st.booleans()) and body:
        at, put = data.draw(st.integers(0, len(body))), data.draw(st.sampled_from(SCALES + HUGE))
        body = body[:at] + put + body[at + len(put) :]
    family.accepts(data.draw(mutations(body)))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_fuzzing_kept_is_read_or_refused(name):
    path = CORPUS / f"{name}.txt"
    for line in path.read_text().splitlines() if path.exists() else []:
        FAMILIES[name].accepts(bytes.fromhex(line))


def test_every_file_of_the_corpus_has_a_reader():
    assert {path.stem for path in CORPUS.glob("*.txt")} <= FAMILIES.keys()


@pytest.mark.parametrize("id", sorted(CODEC_IDS))
def test_right_bytes_of_another_spec_are_read_or_refused(id):
    codec = codec_by_id(id)
    for data in FAMILIES[f"codec-{id}"].seeds:
        for spec in (
            *SPECS,
            StateSpec.of([TensorSpec("z", (2, 2), "vector"), TensorSpec("y", (0,), "vector")]),
        ):
            try:
                assert codec.decode(Payload(id, data[1:]), spec).spec == spec
            except DecodeError:
                continue
