"""A client written from docs/reference/wire-format.md alone: no protobuf, no torch, no headwater.

Bare vectors, noop training, dense codec: enough to take part in a federation.
"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np

# --- protobuf, as far as proto3's varint, 64-bit and length-delimited fields go ------------------


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def read(data):
    """``{field number: [values]}``: int, 8 raw bytes or bytes."""
    fields, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind == 1:
            value, at = data[at : at + 8], at + 8
        else:
            assert kind == 2
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
        fields.setdefault(number, []).append(value)
    assert at == len(data)
    return fields


def write(*fields):
    """A message of ``(number, value)``: int, float, str or bytes; zeros are left out."""
    out = b""
    for number, value in fields:
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, float):
            out += varint(number << 3 | 1) + struct.pack("<d", value) if value else b""
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value) if value else b""
        elif value:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def message(number, content):
    """A message as a field of another: there even if it is empty."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def text(fields, number):
    return fields.get(number, [b""])[0].decode()


def number(fields, at):
    return fields.get(at, [0])[0]


# --- the page's other sections -------------------------------------------------------------------


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fingerprint(tensors):
    return hashlib.sha256(canonical(sorted(tensors, key=lambda t: t["name"])).encode()).hexdigest()


def vector_spec(size):
    return [
        {
            "name": "vector", "shape": [size], "role": "vector", "dtype": "float32",
            "pair": "", "scaling": 1.0, "transposed": False,
        }
    ]  # fmt: skip


def state_sha256(spec_fingerprint, values):
    """``values``: fp32 arrays in order of their tensors' names."""
    body = b"".join(np.ascontiguousarray(v).astype("<f4").tobytes() for v in values)
    return hashlib.sha256(spec_fingerprint.encode() + body).digest()


def root(seed):
    return hashlib.sha256(b"headwater.key.v1" + seed.to_bytes(16, "big", signed=True)).digest()


def child(key, *path):
    for part in path:
        tag = b"i" if isinstance(part, int) else b"s"
        key = hashlib.sha256(key + tag + str(part).encode()).digest()
    return key


def generator(key):
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))


# --- a client ------------------------------------------------------------------------------------


class Stranger:
    """Answers requests for one client with ``examples`` examples and a vector of ``size`` values."""

    def __init__(self, name, size, examples, seed, reads=()):
        self.name, self.size, self.examples, self.seed = name, size, examples, seed
        self.spec, self.reads, self.seen = fingerprint(vector_spec(size)), reads, []
        self.held = {}
        self.hold(np.zeros(size, "<f4"))

    def hold(self, values):
        self.held[state_sha256(self.spec, [values])[:8]] = values

    def values(self, codec, body):
        """A state, or what is added to one."""
        self.seen.append(codec)
        if codec == "dense-fp32.v1":
            return np.frombuffer(body, "<f4")
        assert (codec, body[0]) == ("since.v1", 1)
        values, (count, at) = self.held[body[1:9]], read_varint(body, 9)
        for _ in range(count):
            size, at = read_varint(body, at)
            id, at = body[at : at + size].decode(), at + size
            size, at = read_varint(body, at)
            values, at = values + self.values(id, body[at : at + size]), at + size
        assert at == len(body)
        return values

    def answer(self, envelope, state):
        ((kind, (content,)),) = read(envelope).items()
        if kind == 1:
            model = hashlib.sha256(b"vector").hexdigest()
            return message(
                1,
                write(
                    (1, self.name),
                    (2, self.examples),
                    (3, 0),
                    (4, model),
                    (5, self.spec),
                    (6, text(read(content), 1)),
                    *((9, id) for id in self.reads),
                ),
            )
        fields = read(content)
        run, round_, base = text(fields, 1), number(fields, 2), fields[6][0]
        assert (text(fields, 3), text(fields, 4)) == (self.name, self.spec)
        values = self.values(text(fields, 5), state)
        assert state_sha256(self.spec, [values]) == base
        self.hold(values)
        if kind == 3:
            return message(4, write((1, self.name), (2, round_), (3, "nothing to evaluate on"), (4, run)))
        plan = json.loads(text(fields, 8))
        assert canonical(plan) == text(fields, 8)
        assert plan["training"]["kind"] == "noop"
        assert plan["codec"] == {"kind": "dense", "dtype": "fp32"}
        draw = generator(child(root(self.seed), "round", round_, "client", self.name))
        delta = draw.standard_normal(self.size, dtype=np.float32) * np.float32(plan["training"]["scale"])
        payload = write((1, "dense-fp32.v1"), (2, delta.astype("<f4").tobytes()))
        return message(
            2,
            write(
                (1, run), (2, round_), (3, self.name), (4, self.spec), (5, base), (6, payload),
                (8, self.examples), (10, write((1, "loss")) + varint(2 << 3 | 1) + struct.pack("<d", 0.25)),
            ),
        )  # fmt: skip
