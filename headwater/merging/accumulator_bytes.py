"""HWAC1: an accumulator as bytes, so that another process adds up a part of a round.

:func:`dump` writes whatever dataclass a rule's accumulator is, field by field with its name;
:func:`load` reads it against the rule and the plan that the *receiver* has. Layout:
docs/reference/aggregation.md. Any bytes give an accumulator or a ``DecodeError``, and no array is made
before its size was found to be one that :func:`most_bytes` allows. What a decoded accumulator may *say* is
the rule's :meth:`~headwater.merging.aggregator.Aggregator.require_sound`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
import types
import typing
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.errors import ConfigError, DecodeError, UpdateRejected
from headwater.merging.merge_plan_json import merge_plan_to_json
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan
from headwater.state import StateSpec

MAGIC = b"HWAC1\n"
LONGEST_NAME = 2**12
"""Bytes of a field's, client's or tensor's name."""
_MOST_SIDES = 1 << 56
"""Product of an array's dimensions but for zeros."""
_HEAD = len(MAGIC) + 32
_WHO = "accumulator"
_HINT = "Both sides must run the same version and the same federation."


class Sums(Protocol):
    """What every accumulator has."""

    @property
    def participants(self) -> Participants:
        """Who is in it."""


Acc = TypeVar("Acc", bound=Sums)


class Rule(Protocol[Acc]):
    """What accumulators are written for: a merge rule, or the gap's sketch."""

    def init(self, plan: MergePlan) -> Acc:
        """The empty accumulator."""

    def identity(self) -> Mapping[str, Any]:
        """What sums of two of its kind must have in common."""

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """Memory of what is kept for each client."""

    def require_sound(self, acc: Acc) -> None:
        """Refuse sums that no updates add up to."""


def rule_sha256(rule: Rule[Any], plan: MergePlan) -> bytes:
    """What two accumulators must have in common to be combined: rule, its settings, plan (32 bytes)."""
    settings = json.dumps(dict(rule.identity()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{type(rule).__name__}\n{settings}\n{merge_plan_to_json(plan)}".encode()).digest()


def most_bytes(rule: Rule[Any], plan: MergePlan) -> int:
    """What the arrays of a decoded accumulator may take in memory together, and its bytes at most."""
    seeds = 0 if plan.seeds is None else plan.seeds.count
    methods = 1 + len(plan.methods)
    sums = 8 * (plan.spec.numel + seeds) * (8 + methods)
    return sums + rule.kept_bytes(plan.spec, len(plan.weights)) + 2**20 + 2**9 * len(plan.weights)


def dump(rule: Rule[Acc], acc: Acc) -> bytes:
    """The accumulator as bytes; the same for the same updates, in whatever order they were added.

    Raises:
        ConfigError: a package's accumulator has a field that HWAC1 has no form for.
    """
    body = bytearray(rule_sha256(rule, acc.participants.plan))
    _write(body, acc, type(rule).__name__)
    return MAGIC + hashlib.sha256(body).digest() + bytes(body)


def load(rule: Rule[Acc], plan: MergePlan, data: bytes) -> Acc:
    """The inverse of :func:`dump`.

    Args:
        rule: made from the same settings as the sender's.
        plan: the sender's, as the receiver has it.
        data: bytes of a stranger.

    Raises:
        DecodeError: no accumulator of this rule and plan, or sums that no updates add up to.
    """
    limit = most_bytes(rule, plan)
    if len(data) > limit or len(data) < _HEAD + 32 or data[: len(MAGIC)] != MAGIC:
        raise _wrong(f"HWAC1 of at most {limit} bytes", f"{len(data)} bytes")
    if hashlib.sha256(memoryview(data)[_HEAD:]).digest() != data[len(MAGIC) : _HEAD]:
        raise _wrong("bytes that match their checksum", "others")
    if data[_HEAD : _HEAD + 32] != rule_sha256(rule, plan):
        raise _wrong("sums of this rule and this plan", "sums of others")
    empty = rule.init(plan)
    reader = _Reader(data, _HEAD + 32, plan, limit)
    acc = typing.cast("Acc", reader.value(type(empty), empty, type(empty).__name__))
    reader.end()
    try:
        rule.require_sound(acc)
    except UpdateRejected as error:  # of one of the updates that it keeps
        raise _wrong(error.expected, error.got) from error
    return acc


def _wrong(expected: str, got: str) -> DecodeError:
    return DecodeError(_WHO, expected=expected, got=got, hint=_HINT)


# --- writing --------------------------------------------------------------------------------------


def _write(out: bytearray, value: object, where: str) -> None:
    match value:
        case None:
            out += b"n"
        case bool():
            out += b"b\x01" if value else b"b\x00"
        case int():
            out += b"i" + struct.pack("<q", value)
        case float():
            out += b"f" + struct.pack("<d", value)
        case str():
            out += b"s"
            _write_name(out, value)
        case Tensor():
            _write_array(out, value.numpy(), where)
        case np.ndarray():
            _write_array(out, value, where)
        case Participants():
            out += b"p" + struct.pack("<I", len(value.clients))
            for client in sorted(value.clients):
                _write_name(out, client)
        case Mapping():
            out += b"d" + struct.pack("<I", len(value))
            for key in sorted(value):
                _write_name(out, key)
                _write(out, value[key], f"{where}.{key}")
        case _ if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            out += b"r" + struct.pack("<I", len(fields))
            for field in fields:
                _write_name(out, field.name)
                _write(out, getattr(value, field.name), f"{where}.{field.name}")
        case _:
            raise ConfigError(
                f"accumulator of {where}",
                expected="int64 and float32 arrays, numbers, text, tables by name, dataclasses of those",
                got=type(value).__name__,
                hint="Such a rule cannot be summed outside the server.",
            )


def _write_name(out: bytearray, name: str) -> None:
    data = name.encode()
    out += struct.pack("<H", len(data)) + data


def _write_array(out: bytearray, array: npt.NDArray[Any], where: str) -> None:
    """dtype, shape, bytes; int64 in as few bytes a value as the largest magnitude needs."""
    if array.dtype not in (np.int64, np.float32):
        raise ConfigError(
            f"accumulator of {where}", expected="an int64 or float32 array", got=str(array.dtype)
        )
    head = struct.pack(f"<B{array.ndim}Q", array.ndim, *array.shape)
    if array.dtype == np.float32:
        out += b"af" + head + array.astype("<f4").tobytes()
        return
    width = _width(array)
    planes = np.ascontiguousarray(array, "<i8").view(np.uint8).reshape(-1, 8)
    out += b"aq" + head + bytes([width]) + np.ascontiguousarray(planes[:, :width]).tobytes()


def _width(array: npt.NDArray[np.int64]) -> int:
    """Bytes of two's complement that hold every value; 0 if all are zero."""
    if not array.size or not array.any():
        return 0
    low, high = int(array.min()), int(array.max())
    return max(high.bit_length(), (~low).bit_length() if low < 0 else 0) // 8 + 1


# --- reading --------------------------------------------------------------------------------------


class _Reader:
    """Reads values of a known type; everything is checked before it is made."""

    def __init__(self, data: bytes, at: int, plan: MergePlan, limit: int) -> None:
        self._data, self._at, self._plan = data, at, plan
        self._left = limit  # bytes of arrays that may still be made
        self._hints: dict[type[Any], dict[str, Any]] = {}

    def end(self) -> None:
        if self._at != len(self._data):
            raise _wrong("the end", f"{len(self._data) - self._at} more bytes")

    def value(self, hint: object, like: object, where: str) -> object:
        """A value of the type ``hint``; arrays have the shape of those in ``like``, where it has them."""
        origin = typing.get_origin(hint)
        if origin in (typing.Union, types.UnionType):
            inner = next(part for part in typing.get_args(hint) if part is not type(None))
            if self._peek() == b"n":
                self._at += 1
                return None
            return self.value(inner, like, where)
        if hint is Participants:
            return self._clients(where)
        if hint is Tensor:
            return torch.from_numpy(self._array(like, where))
        if origin is np.ndarray:
            return self._array(like, where)
        if origin in (dict, Mapping):
            known = like if isinstance(like, Mapping) else {}
            return self._table(typing.get_args(hint)[1], known, where)
        if dataclasses.is_dataclass(hint):
            return self._record(typing.cast("type[Any]", hint), like, where)
        return self._plain(hint, where)

    def _record(self, kind: type[Any], like: object, where: str) -> object:
        self._tag(b"r", where)
        names = [field.name for field in dataclasses.fields(kind)]
        if self._count(where) != len(names):
            raise _wrong(f"{where}: {len(names)} fields", "another number")
        if kind not in self._hints:
            self._hints[kind] = typing.get_type_hints(kind)
        found = {}
        for name in names:
            if self._name(where) != name:
                raise _wrong(f"{where}: field {name}", "another")
            found[name] = self.value(self._hints[kind][name], getattr(like, name, None), f"{where}.{name}")
        return kind(**found)

    def _table(self, hint: object, like: Mapping[str, Any], where: str) -> dict[str, Any]:
        self._tag(b"d", where)
        count, most = self._count(where), max(len(self._plan.weights), len(like), len(self._plan.methods), 1)
        if count > most:
            raise _wrong(f"{where}: at most {most} entries", str(count))
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self._name(where)
            if found and name <= next(reversed(found)):
                raise _wrong(f"{where}: names in ascending order", repr(name[:64]))
            found[name] = self.value(hint, like.get(name), where)
        if missing := like.keys() - found.keys():
            raise _wrong(f"{where}: an entry for {min(missing)}", "none")
        return found

    def _clients(self, where: str) -> Participants:
        self._tag(b"p", where)
        found = Participants(self._plan)
        last = ""
        for _ in range(self._count(where)):
            name = self._name(where)
            if name <= last or name not in self._plan.weights:
                raise _wrong("clients of the plan, in ascending order", repr(name[:64]))
            found.enter(name)
            last = name
        return found

    def _plain(self, hint: object, where: str) -> object:
        if hint is bool:
            self._tag(b"b", where)
            byte = self._take(1, where)[0]
            if byte > 1:
                raise _wrong(f"{where}: 0 or 1", str(byte))
            return bool(byte)
        if hint is int or (hint is float and self._peek() == b"i"):  # a weight stays the integer it is
            self._tag(b"i", where)
            return struct.unpack("<q", self._take(8, where))[0]
        if hint is float:
            self._tag(b"f", where)
            number = struct.unpack("<d", self._take(8, where))[0]
            if not math.isfinite(number):
                raise _wrong(f"{where}: a finite number", str(number))
            return number
        if hint is str:
            self._tag(b"s", where)
            return self._name(where)
        raise ConfigError(
            f"accumulator, {where}", expected="a type that HWAC1 has a form for", got=str(hint)[:80]
        )

    def _array(self, like: object, where: str) -> npt.NDArray[Any]:
        self._tag(b"a", where)
        kind, rank = self._take(1, where), self._take(1, where)[0]
        if kind not in (b"q", b"f") or rank > 4:
            raise _wrong(f"{where}: an int64 or float32 array", f"{kind!r}, {rank} dimensions")
        shape = struct.unpack(f"<{rank}Q", self._take(8 * rank, where))
        size = math.prod(shape)
        memory = size * (8 if kind == b"q" else 4)
        sides = math.prod(max(1, side) for side in shape)  # NumPy refuses those of an empty array too
        if memory > self._left or sides > _MOST_SIDES:
            raise _wrong("arrays within the stated memory", f"{where} of {shape}")
        if isinstance(like, Tensor | np.ndarray):
            expected = tuple(like.shape), b"f" if "float" in str(like.dtype) else b"q"
            if (shape, kind) != expected:
                raise _wrong(f"{where}: {expected}", f"{(shape, kind)}")
        self._left -= memory
        return (self._integers(size, where) if kind == b"q" else self._floats(size, where)).reshape(shape)

    def _integers(self, size: int, where: str) -> npt.NDArray[np.int64]:
        width = self._take(1, where)[0]
        if width > 8:
            raise _wrong(f"{where}: at most 8 bytes a value", str(width))
        data = self._take(width * size, where)
        if not width:
            return np.zeros(size, np.int64)
        wide = np.zeros((size, 8), np.uint8)
        wide[:, 8 - width :] = np.frombuffer(data, np.uint8).reshape(size, width)
        values = wide.view("<i8").reshape(size).astype(np.int64, copy=False)
        values >>= 64 - 8 * width
        if _width(values) != width:
            raise _wrong(f"{where}: as few bytes a value as it needs", str(width))
        return values

    def _floats(self, size: int, where: str) -> npt.NDArray[np.float32]:
        values = np.frombuffer(self._take(4 * size, where), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise _wrong(f"{where}: finite values", "others")
        return values

    def _name(self, where: str) -> str:
        (size,) = struct.unpack("<H", self._take(2, where))
        if size > LONGEST_NAME:
            raise _wrong(f"{where}: names of at most {LONGEST_NAME} bytes", str(size))
        try:
            return self._take(size, where).decode()
        except UnicodeDecodeError:
            raise _wrong(f"{where}: UTF-8", "other bytes") from None

    def _count(self, where: str) -> int:
        (count,) = struct.unpack("<I", self._take(4, where))
        return int(count)

    def _tag(self, tag: bytes, where: str) -> None:
        if (got := self._take(1, where)) != tag:
            raise _wrong(f"{where}: '{tag.decode()}'", repr(got))

    def _peek(self) -> bytes:
        return self._data[self._at : self._at + 1]

    def _take(self, count: int, where: str) -> bytes:
        if len(self._data) - self._at < count:
            raise _wrong(f"{where}: {count} bytes", f"{len(self._data) - self._at}")
        self._at += count
        return self._data[self._at - count : self._at]
