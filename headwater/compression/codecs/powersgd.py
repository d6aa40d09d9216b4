"""PowersgdCodec: matrices as two thin factors.

PowerSGD (Vogels et al. 2019, arXiv 1905.13727, algorithm 1): of a matrix M [m, n], P = orth(M·Q) and Q = Mᵀ·P
by power iteration from a random Q [n, r]; M arrives as P·Qᵀ. Since P·Pᵀ is a projection, what is lost is no
longer than M. The original sums P over the workers before it is orthonormalised, in two trips, and starts
from the last step's Q; here each client has its own P, and starts from a Q that its key draws.

A tensor of two axes or more is a matrix of its first axis by the others; one for which the factors would have
as many values as it has, or that has one axis, travels as fp32. Every sum is fp64 in one order, elementwise
or by NumPy's own reduction, never by a BLAS, and the start is uniform from Philox' integers: the same bits on
every processor. LoRA's A and B are thin already: this is for dense changes, heads and embeddings.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.codec import Codec
from headwater.compression.entropy import CHUNK
from headwater.compression.reader import Floats, diverged, flat_finite, open_payload
from headwater.errors import ConfigError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

VERSION = 1
MOST_RANK = 1024
_NOTHING = 1e-10
"""A column that orthogonalisation leaves less of than this share is taken for 0."""

Doubles = npt.NDArray[np.float64]


class PowersgdCodec(Codec):
    """The rank; for each tensor P and Q row by row, or its values: all fp32.

    Args:
        rank: r. Decoding does not need it.
        iterations: of the power method, at least 1.
    """

    id = "powersgd.v1"

    def __init__(self, rank: int = 2, iterations: int = 2) -> None:
        if not (1 <= rank <= MOST_RANK and iterations >= 1):
            expected = f"rank 1 to {MOST_RANK}, at least 1 iteration"
            raise ConfigError("codec powersgd", expected=expected, got=f"{rank}, {iterations}")
        self._rank, self._iterations = rank, iterations

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; the power method starts from ``key``."""
        draws, body = key.child("powersgd").numpy(), bytearray([VERSION]) + varint(self._rank)
        for name, values in flat_finite(state, self.id).items():
            sides = _sides(state.spec.by_name[name], self._rank)
            if sides is None:
                body += values.astype("<f4").tobytes()
                continue
            p, q = self._factors(values.reshape(sides).astype(np.float64), draws)
            if not np.isfinite(_product(p, q)).all():
                raise diverged(f"values whose factors {self.id} can write", f"{np.abs(values).max():.4g}")
            body += p.astype("<f4").tobytes() + q.astype("<f4").tobytes()
        return Payload(self.id, bytes(body))

    def _factors(self, matrix: Doubles, draws: np.random.Generator) -> tuple[Floats, Floats]:
        """P [m, r] and Q [n, r]."""
        q: Doubles = 2 * draws.random((matrix.shape[1], self._rank)) - 1
        for _ in range(self._iterations):
            p = _orthonormal(_times(matrix, q)).astype(np.float32)
            q = _times(matrix.T, p.astype(np.float64))
        with np.errstate(over="ignore"):
            return p, q.astype(np.float32)

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        rank = reader.varint(MOST_RANK, "rank")
        if not rank:
            raise reader.fail("a rank of at least 1", "0")
        tensors = {}
        for t in spec:
            sides = _sides(t, rank)
            if sides is None:
                values = _read(reader, t.numel)
            else:
                p, q = (_read(reader, side * rank).reshape(side, rank) for side in sides)
                values = _product(p, q)
            if not np.isfinite(values).all():
                raise reader.fail(f"tensor {t.name}: finite values", "others")
            tensors[t.name] = torch.from_numpy(values).reshape(t.shape)
        reader.end()
        return AdapterState(spec, tensors)

    def max_bytes(self, spec: StateSpec) -> int:
        """No tensor travels in more than its own values."""
        return 1 + len(varint(MOST_RANK)) + 4 * spec.numel


def _sides(t: TensorSpec, rank: int) -> tuple[int, int] | None:
    """The matrix that a tensor is, if its factors have fewer values."""
    if len(t.shape) < 2 or not t.numel:
        return None
    rows, columns = t.shape[0], math.prod(t.shape[1:])
    return (rows, columns) if rank * (rows + columns) < t.numel else None


def _times(matrix: Doubles, factor: Doubles) -> Doubles:
    """The matrix [m, n] · factor [n, r], a column at a time."""
    return np.stack([(matrix * column).sum(axis=1) for column in factor.T], axis=1)


def _orthonormal(columns: Doubles) -> Doubles:
    """Modified Gram-Schmidt, twice; a column that depends on those before becomes 0."""
    done = list[Doubles]()
    for column in columns.T:
        left, length = column, math.sqrt(float(np.square(column).sum()))
        for before in done * 2:
            left = left - before * float((before * left).sum())
        rest = math.sqrt(float(np.square(left).sum()))
        done.append(left / rest if rest > _NOTHING * length else np.zeros_like(left))
    return np.stack(done, axis=1)


def _product(p: Floats, q: Floats) -> Floats:
    """P·Qᵀ as fp32: outer products added in order in fp64, some rows at a time."""
    out = np.empty((len(p), len(q)), np.float32)
    step = max(1, CHUNK // len(q))
    columns = q.T.astype(np.float64)
    for start in range(0, len(p), step):
        total = np.zeros(out[start : start + step].shape, np.float64)
        for left, right in zip(p[start : start + step].T.astype(np.float64), columns, strict=True):
            total += left[:, None] * right
        with np.errstate(over="ignore", invalid="ignore"):
            out[start : start + step] = total
    return out


def _read(reader: Reader, count: int) -> Floats:
    values = np.frombuffer(reader.take(4 * count, "values"), "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise reader.fail("finite values", "others")
    return values
