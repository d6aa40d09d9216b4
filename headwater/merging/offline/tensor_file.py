"""Safetensors files, tensor by tensor: :class:`TensorFile` reads one, :class:`TensorWriter` writes one.

A tensor is read by its place in the file and not through a memory map: pages of a map count as memory of the
process for as long as the map lives, and a merge of a thousand adapters would grow with them. NumPy has no
bfloat16, which most adapters are stored in; here it is read, as float32, which holds each of its values.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from headwater.errors import DecodeError, ModelError, StorageError
from headwater.files import read_into

Array = npt.NDArray[Any]

_READ_AS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of a file: its safetensors type, its shape, and its bytes ``[start, stop)`` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Tensors(Protocol):
    """Tensors by name, read when they are asked for."""

    @property
    def path(self) -> Path:
        """The file that they are in."""

    @property
    def tensors(self) -> Mapping[str, Place]:
        """What is there, in order of name."""

    def read(self, name: str) -> Array:
        """The values of one, finite: float64 where the file has float64, else float32."""


class TensorFile:
    """The tensors of a file, read when they are asked for.

    Args:
        path: a ``.safetensors`` file; it must not change while it is read.

    Raises:
        StorageError: it cannot be read.
        DecodeError: it is no safetensors file, or not a sound one.
    """

    __slots__ = ("_path", "tensors")

    def __init__(self, path: Path) -> None:
        self._path = str(path)  # a path takes five times as much, and a merge opens thousands
        try:
            with path.open("rb") as file:
                head = file.read(8)
                with safe_open(path, "numpy"):  # its checks: lengths, overlaps, gaps, shapes
                    pass
                length = int.from_bytes(head, "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except OSError as error:
            raise StorageError(
                f"{path}", expected="a readable file", got=error.strerror or str(error)
            ) from error
        except (SafetensorError, ValueError, RecursionError) as error:
            # only now: a header of 1,152 bytes begins as a pickle does
            pickled = head[:4] in _PICKLES or head[:2] in _PICKLES
            got = "a pickle, which runs code when it is loaded" if pickled else str(error)
            raise _unsound(path, got) from error
        header.pop("__metadata__", None)
        self.tensors = {
            name: Place(
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in sorted(header.items())
        }

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._path)

    def read(self, name: str) -> Array:
        """The values of a tensor: float64 where the file has float64, else float32.

        Raises:
            DecodeError: numbers of another type, a value that is not finite, or a file that has changed.
        """
        place = self.tensors[name]
        if place.dtype not in _READ_AS:
            raise DecodeError(
                f"{self.path}, tensor {name}",
                expected=f"numbers of type {', '.join(_READ_AS)}",
                got=place.dtype,
                hint="Quantised or integer adapters cannot be merged; save the adapter in a float type.",
            )
        raw = np.empty(place.stop - place.start, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            if read_into(file, place.start, raw.data) != raw.size:
                raise _unsound(self.path, "a file that became shorter while it was read")
        values: Array = raw.view(_READ_AS[place.dtype])
        if place.dtype == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif place.dtype == "F16":
            values = values.astype(np.float32)
        if place.dtype == "F64" and (np.abs(values) > np.finfo(np.float32).max).any():  # NaN is told below
            raise DecodeError(
                f"{self.path}, tensor {name}",
                expected="numbers that float32 holds",
                got=f"values up to {np.abs(values).max():.3g}",
                hint="Its training diverged: leave this adapter out.",
            )
        if not np.isfinite(values).all():
            raise DecodeError(
                f"{self.path}, tensor {name}",
                expected="finite numbers",
                got=f"{int((~np.isfinite(values)).sum())} that are NaN or infinite",
                hint="Its training diverged: leave this adapter out.",
            )
        return values.reshape(place.shape)


class TensorWriter:
    """A safetensors file that is written as its tensors come, in float32, one in memory at a time.

    Use it as a context: the file is whole when the block ends, and absent where it ends in an exception.

    Args:
        path: is made or replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._body = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._entries: dict[str, dict[str, Any]] = {}
        self._size = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> TensorWriter:
        self._file = self._body.open("w+b")
        return self

    def add(self, name: str, values: Array) -> None:
        """Write one tensor.

        Args:
            name: not yet in the file.
            values: any shape; stored as float32.

        Raises:
            StorageError: the disk is full or not writable.
            ModelError: a value that float32 does not hold.
        """
        with np.errstate(over="ignore"):  # said below
            data = np.asarray(values, "<f4", order="C")
        if not np.isfinite(data).all():
            raise ModelError(
                f"merge, tensor {name}",
                expected="numbers that float32 holds",
                got=f"values up to {float(np.abs(values).max()):.3g}",
                hint="Weights or --scale are too large.",
            )
        self._write(name, data, "F32")

    def add_bits(self, name: str, bits: Array, dtype: str) -> None:
        """Write one tensor of another type.

        Args:
            name: not yet in the file.
            bits: of its values, as integers of their width; any shape.
            dtype: safetensors' name of the type.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self._write(name, np.ascontiguousarray(bits), dtype)

    def _write(self, name: str, data: Array, dtype: str) -> None:
        assert self._file is not None
        assert name not in self._entries
        try:
            self._file.write(data.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._cannot(error) from error
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(data.shape),
            "data_offsets": [self._size, self._size + data.nbytes],
        }
        self._size += data.nbytes

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        assert self._file is not None
        try:
            if kind is None:
                header = json.dumps(
                    {"__metadata__": {"format": "pt"}} | self._entries, separators=(",", ":")
                ).encode()
                header += b" " * (-len(header) % 8)
                with self._path.open("wb") as whole:
                    whole.write(len(header).to_bytes(8, "little") + header)
                    self._file.seek(0)
                    shutil.copyfileobj(self._file, whole, 1 << 20)
                    whole.flush()
                    os.fsync(whole.fileno())
        except OSError as failure:
            self._path.unlink(missing_ok=True)
            raise self._cannot(failure) from failure
        finally:
            self._file.close()
            self._body.unlink(missing_ok=True)

    def _cannot(self, error: OSError) -> StorageError:
        return StorageError(
            f"writing {self._path}",
            expected="room on a disk that can be written",
            got=error.strerror or str(error),
            hint="Nothing was written; free space or choose another folder.",
        )


def _unsound(path: Path, got: str) -> DecodeError:
    return DecodeError(
        f"{path}",
        expected="a sound safetensors file",
        got=got,
        hint="Save the adapter again with PEFT's save_pretrained, or leave it out.",
    )
