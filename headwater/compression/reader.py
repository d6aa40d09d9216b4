"""What every wire format here shares: refusing payloads early, and states that are not finite.

Entry points: :func:`open_payload`, :func:`flat_finite`, :func:`diverged`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.compression.byte_reader import RESEND, Reader
from headwater.compression.codec import Codec
from headwater.errors import DecodeError, TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec

Floats = npt.NDArray[np.float32]


def open_payload(payload: Payload, codec: Codec, spec: StateSpec) -> Reader:
    """A reader of ``payload``'s body, once its codec and length are those of ``codec``.

    Raises:
        DecodeError: another codec's payload, or a body longer than any ``codec`` writes for ``spec``.
    """
    if payload.codec != codec.id:
        raise DecodeError("payload", expected=f"codec {codec.id}", got=repr(payload.codec)[:80], hint=RESEND)
    limit = codec.max_bytes(spec)
    reader = Reader(payload.body, f"{codec.id} payload")
    if len(payload.body) > limit:
        raise reader.fail(f"at most {limit} bytes", f"{len(payload.body)}")
    return reader


def flat_finite(state: AdapterState, codec: str) -> dict[str, Floats]:
    """Every tensor of ``state`` as a flat fp32 array that shares its memory.

    Raises:
        TrainingError: a value is NaN or infinite.
    """
    flat = {}
    for name, tensor in state.items():
        values: Floats = tensor.contiguous().reshape(-1).numpy()
        if not np.isfinite(values).all():
            bad = f"{int((~np.isfinite(values)).sum())} NaN or infinite"
            raise diverged(f"finite values to encode with {codec}", bad, f"tensor {name}")
        flat[name] = values
    return flat


def diverged(expected: str, got: str, who: str = "adapter state") -> TrainingError:
    """The error to raise where values are too large to be sent."""
    hint = "The run diverged: lower the learning rate or set max_grad_norm."
    error = TrainingError(who, expected=expected, got=got, hint=hint)
    coded(error, FailureCode.DIVERGED)
    return error
