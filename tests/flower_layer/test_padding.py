"""Padding: the paper's sizes, what is read back, and that objects on the wire have the sizes of buckets."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import DecodeError
from headwater.flower import as_array, count_bytes, pack, padding_in, unpack
from headwater.flower.fleet_client import sealed_reply
from headwater.flower.message_objects import CHUNK_BYTES, open_objects
from headwater.flower.padding import LEAST, bucket, filler
from tests.flower_layer.test_flower import ASKED

KINDS = ["padme", "power-of-two"]


def padme(size):
    """Algorithm 1 of arXiv 1806.03160, line by line."""
    exponent = math.floor(math.log2(size))
    kept = math.floor(math.log2(exponent)) + 1
    mask = 2 ** (exponent - kept) - 1
    return size + mask - (size + mask) % (mask + 1)


@given(st.integers(LEAST, 2**34))
def test_it_is_the_papers_function(size):
    padded = bucket(size, "padme")
    assert padded == padme(size)
    assert size <= padded <= 1.12 * size
    assert bucket(padded, "padme") == padded
    two = bucket(size, "power-of-two")
    assert two & (two - 1) == 0
    assert size <= two < 2 * size


def test_few_sizes_are_left():
    assert {bucket(size, "padme") for size in range(LEAST)} == {LEAST}
    assert len({bucket(size, "padme") for size in range(2**17, 2**18)}) == 33  # 2^5 steps of an octave
    assert [bucket(size, "none") for size in (0, 5, 10**6)] == [0, 5, 10**6]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=9000))
def test_what_is_padded_is_read_back(kind, data):
    content = pack(reply=as_array(data, kind))
    assert unpack(content, "reply") == (data,)
    assert count_bytes(content) == bucket(len(data), kind)
    assert padding_in(content) == kind
    assert filler(data, kind) == filler(data, kind)


def objects_of(data, kind):
    """A reply's objects, as a device pushes them."""
    request, objects = sealed_reply(ASKED, data, kind)
    root = request.message_object_trees[0].object_id
    return root, {name: found.deflate() for name, found in objects.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 700, LEAST, 3 * CHUNK_BYTES + 17])
def test_objects_on_the_wire_have_the_sizes_of_buckets(kind, size):
    """Chunks too: each is a request of its own. None is sent once for two."""
    data = bytes(size)
    root, objects = objects_of(data, kind)
    chunks = sorted(len(c) for c in objects.values() if c.startswith(b"ArrayChunk"))
    heads = [len(c.partition(b"\0")[0]) + 1 for c in objects.values() if c.startswith(b"ArrayChunk")]
    repeated = max(0, size // CHUNK_BYTES - 1) * CHUNK_BYTES  # zeros of the data itself are
    assert sum(chunks) - sum(heads) == bucket(size, kind) - repeated
    parts = open_objects(root, objects, max_bytes=2 * size + LEAST)
    assert parts == {"reply": data}
    assert parts.padding == kind


@pytest.mark.parametrize("end", [-1, 10**9, 2.0, "3", None, True])
def test_an_end_beyond_the_data_is_refused(end):
    root, objects = objects_of(b"abc", "padme")
    for name, content in objects.items():
        if content.startswith(b"Array "):
            head, divider, body = content.partition(b"\0")
            about = {**json.loads(body), "shape": [end]}
            changed = json.dumps(about).encode()
            size = head.rsplit(b" ", 1)[0] + f" {len(changed)}".encode()
            objects[name] = size + divider + changed
    with pytest.raises(DecodeError):
        open_objects(root, objects, max_bytes=10**6)
