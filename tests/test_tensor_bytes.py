"""Arrays to bytes and back, and what safetensors raises where memory is short."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import SafetensorError

from headwater import tensor_bytes


class PanicException(BaseException):
    """As safetensors' own, which no module exports."""


def test_what_is_saved_is_loaded_and_the_same_arrays_give_the_same_bytes():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.frombuffer(b"xyz", np.uint8)}
    content = tensor_bytes.save(arrays, metadata={"k": "v"})
    assert content == tensor_bytes.save(arrays, metadata={"k": "v"})
    found = tensor_bytes.load(content)
    assert set(found) == {"a", "b"}
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    with pytest.raises(SafetensorError):
        tensor_bytes.load(content[:20])


def test_the_pieces_are_the_container():
    """What we lay out ourselves is what safetensors writes, byte for byte, in its own order."""
    arrays = {
        "b/at": np.arange(3, dtype=np.int32),
        "b/values": np.arange(3, dtype=np.float32),
        "a \u00e9": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "none": np.zeros((2, 0), np.float32),
        "envelope": np.frombuffer(b"xyz", np.uint8),
    }
    metadata = {"k": '{"a": "\u00e9"}'}
    found = b"".join(tensor_bytes.pieces(arrays, metadata=metadata))
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    assert found == tensor_bytes.save(whole, metadata=metadata)
    assert b"".join(tensor_bytes.pieces({}, metadata=metadata)) == tensor_bytes.save({}, metadata=metadata)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (PanicException("PyObject pointer is null"), MemoryError),
        (PanicException("index out of bounds"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_panic_is_an_exception(monkeypatch, raised, seen):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(tensor_bytes.safetensors, "save", fail)
    monkeypatch.setattr(tensor_bytes.safetensors, "load", fail)
    with pytest.raises(seen) as found:
        tensor_bytes.save({}, metadata={})
    assert type(found.value) is seen
    with pytest.raises(seen):
        tensor_bytes.load(b"")
