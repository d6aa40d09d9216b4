"""DenseCodec: every value, as fp32, bf16 or fp16."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from headwater.compression.codec import Codec
from headwater.compression.reader import flat_finite, open_payload
from headwater.errors import TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

_HALVES = {"bf16": (torch.bfloat16, "3.39e38"), "fp16": (torch.float16, "65,520")}
"""Types of 2 bytes, and where each rounds to infinity."""


class DenseCodec(Codec):
    """All values in name order, little-endian, no header.

    ``bf16`` rounds to nearest, ties to even: relative error at most 2⁻⁸ for normal values. A finite
    value that would round to infinity (above 3.39e38) raises ``TrainingError``. ``fp16`` rounds alike:
    by at most 2⁻¹¹ of a value from 6.1e-5 on, and 3.0e-8 below; from 65,520 on it raises.

    Args:
        dtype: ``fp32`` (lossless, 4 bytes a value), ``bf16`` or ``fp16`` (2 bytes a value).
    """

    def __init__(self, dtype: Literal["fp32", "bf16", "fp16"] = "fp32") -> None:
        self.id = f"dense-{dtype}.v1"
        self._dtype = dtype
        self._width = 4 if dtype == "fp32" else 2

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The values of ``state``; ``key`` is not used."""
        flat_finite(state, self.id)
        if self._dtype == "fp32":
            return Payload(self.id, state.tobytes())
        to, most = _HALVES[self._dtype]
        rounded = state.vector().to(to)
        if not bool(torch.isfinite(rounded).all()):
            error = TrainingError(
                "adapter state",
                expected=f"values below {most}, {self._dtype}'s largest",
                got=f"{state.max_abs():.4g}",
                hint="The run diverged: lower the learning rate or set max_grad_norm.",
            )
            raise coded(error, FailureCode.DIVERGED)
        return Payload(self.id, rounded.view(torch.int16).numpy().astype("<i2", copy=False).tobytes())

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; exactly ``max_bytes(spec)`` bytes of finite values or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        body = reader.take(self.max_bytes(spec), "values")
        if self._dtype == "bf16":
            values = (np.frombuffer(body, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(body, "<f4" if self._dtype == "fp32" else "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise reader.fail("finite values", f"{int((~np.isfinite(values)).sum())} NaN or infinite")
        return AdapterState.from_vector(spec, torch.from_numpy(values))

    def max_bytes(self, spec: StateSpec) -> int:
        """Exactly the length of every body."""
        return self._width * spec.numel
