"""Plain ArrayRecords as states that rules and codecs know: float arrays by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from headwater.errors import DecodeError, SpecMismatch
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec, TensorSpec

PAYLOAD = "headwater"
"""The one array of a record that holds a compressed change."""
_STYPE = "headwater.delta/"
"""Before the codec's id."""
_FLOATS = ("float16", "float32", "float64")


def spec_of(arrays: Mapping[str, Array], who: str) -> StateSpec:
    """Names and shapes.

    Raises:
        SpecMismatch: an array is not of floats, or not NumPy's.
    """
    for name, array in arrays.items():
        if array.dtype not in _FLOATS or array.stype != "numpy.ndarray":
            raise SpecMismatch(
                f"{who}, array {name!r}",
                expected=f"NumPy's {', '.join(_FLOATS)}",
                got=f"{array.dtype} ({array.stype})",
                hint="Leave counters and the like out of the ArrayRecord, or convert them.",
            )
    return StateSpec.of(TensorSpec(n, tuple(a.shape), "vector") for n, a in arrays.items())


def state_of(arrays: Mapping[str, Array], spec: StateSpec, who: str) -> AdapterState:
    """Values as float32.

    Raises:
        SpecMismatch: other names, shapes or kinds of values than ``spec``.
        DecodeError: bytes that are not the array they claim to be.
    """
    found = spec_of(arrays, who)
    if found != spec:
        raise SpecMismatch(who, expected=_said(spec, found), got=_said(found, spec))
    values = dict[str, torch.Tensor]()
    for name, array in arrays.items():
        try:
            value = array.numpy()
        except (ValueError, EOFError, OSError) as error:  # np.load's, of bytes from elsewhere
            raise DecodeError(f"{who}, array {name!r}", expected="an array", got=str(error)[:200]) from error
        if value.shape != spec.by_name[name].shape or str(value.dtype) != array.dtype:
            raise SpecMismatch(
                f"{who}, array {name!r}",
                expected=f"{array.dtype} {spec.by_name[name].shape}",
                got=f"{value.dtype} {value.shape}",
            )
        values[name] = torch.from_numpy(np.array(value, dtype=np.float32))
    return AdapterState(spec, values)


def _said(spec: StateSpec, other: StateSpec) -> str:
    """The first arrays of ``spec`` that are not in ``other``."""
    mine = [f"{t.name} {list(t.shape)}" for t in spec if other.by_name.get(t.name) != t]
    return ", ".join(mine[:3]) + (f" and {len(mine) - 3} more" if len(mine) > 3 else "") or "none of them"


def moved(base: ArrayRecord, before: AdapterState, after: AdapterState) -> ArrayRecord:
    """``base`` after it moved from ``before``, its values as float32, to ``after``; each in its own dtype."""
    found = ArrayRecord()
    for name, array in base.items():
        new = after[name].numpy()
        if array.dtype == "float64":  # what did not move keeps all of its bits
            new = array.numpy() + (new.astype(np.float64) - before[name].numpy())
        found[name] = Array(np.asarray(new, dtype=array.dtype, order="C"))
    return found


def to_record(payload: Payload) -> ArrayRecord:
    """A compressed change as a record of one array of bytes."""
    size = len(payload.body)
    return ArrayRecord({PAYLOAD: Array("uint8", (size,), f"{_STYPE}{payload.codec}", payload.body)})


def payload_of(record: ArrayRecord) -> Payload | None:
    """The inverse of :func:`to_record`; None for plain arrays."""
    array = record.get(PAYLOAD)
    if array is None or len(record) != 1 or not array.stype.startswith(_STYPE):
        return None
    return Payload(array.stype.removeprefix(_STYPE), array.data)
