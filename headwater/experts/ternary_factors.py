"""LoRA's change of a weight as a sum of sparse ternary directions c_i·b_i·a_iᵀ: a_i, b_i of 0, +1 and −1.

ComPEFT (arXiv 2311.13171) keeps the largest values of an adapter, as signs and one scale. Of LoRA it takes
the values of A and B as they are, and so mostly the random numbers that A began with. What the adapter does
to its base is s·B·A alone, and that has other factors: of its singular value decomposition U·S·Vᵀ, the
balanced ones U·√S and √S·Vᵀ, whose largest values are its own. Those are kept here, and the scales c are the
best there are for the signs that were kept: the least squares ‖s·B·A − Σ c_i·b_i·a_iᵀ‖. No matrix
[rows, columns] is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.compression.entropy import Symbols
from headwater.compression.ternary import MINUS, PLUS, kept, select
from headwater.experts.numbers import TYPES, bits_of, values_of
from headwater.merging.offline.low_rank import balanced
from headwater.merging.offline.rule import Floats

Signs = npt.NDArray[np.int8]


@dataclass(frozen=True)
class TernaryFactors:
    """Σ m_i²·b_i·a_iᵀ.

    Args:
        a: [r, columns], of −1, 0 and 1; no row is all zero, but where there is nothing at all: then r = 1.
        b: [rows, r], likewise by column.
        magnitudes: m [r], of bfloat16's values, positive; 0 where there is nothing.
    """

    a: Signs
    b: Signs
    magnitudes: npt.NDArray[np.float32]


def ternary_factors(b: Floats, a: Floats, density: float) -> TernaryFactors:
    """The change b·a in this form; one that has this form already keeps its signs, whatever the density.

    Args:
        b: [rows, r], times LoRA's s.
        a: [r, columns].
        density: of the values that are kept, of both factors together.
    """
    found = _already(b, a)
    if found is None:
        found = _largest(*balanced(b, a), density)
    b_signs, a_signs = found
    live = b_signs.any(axis=0) & a_signs.any(axis=1)
    b_signs, a_signs = b_signs[:, live], a_signs[live]
    scales = _scales(b_signs.astype(np.float64), a_signs.astype(np.float64), b, a)
    magnitudes = to_bfloat16(np.sqrt(np.abs(scales)))
    live = magnitudes > 0
    if not live.any():
        return TernaryFactors(
            np.zeros((1, a.shape[1]), np.int8), np.zeros((b.shape[0], 1), np.int8), np.zeros(1, np.float32)
        )
    b_signs = b_signs * np.where(scales < 0, -1, 1).astype(np.int8)
    return TernaryFactors(a_signs[live], b_signs[:, live], magnitudes[live])


def to_bfloat16(values: Floats) -> npt.NDArray[np.float32]:
    """The nearest values of bfloat16, ties to even, as float32; the largest finite one at most."""
    nearest: npt.NDArray[np.float32] = values_of(
        np.minimum(bits_of(values, TYPES["BF16"]), np.uint16(0x7F7F)), TYPES["BF16"]
    )
    return nearest


def signs_of(symbols: Symbols) -> Signs:
    """Symbols of the coder as −1, 0 and 1."""
    signs: Signs = (symbols == PLUS).astype(np.int8) - (symbols == MINUS).astype(np.int8)
    return signs


def _largest(b: Floats, a: Floats, density: float) -> tuple[Signs, Signs]:
    """The signs of the largest values of both factors together, zero elsewhere.

    Of one direction no more are kept than its signs can use: what is left goes to weaker directions.
    """
    if not b.size:
        return np.zeros(b.shape, np.int8), np.zeros(a.shape, np.int8)
    values = np.concatenate([_useful(b.T).T.reshape(-1), _useful(a).reshape(-1)])
    signs = signs_of(select(values.astype(np.float32), kept(values.size, density)))
    return signs[: b.size].reshape(b.shape), signs[b.size :].reshape(a.shape)


def _useful(vectors: Floats) -> Floats:
    """Vectors [r, n] without values that one magnitude for all would make worse.

    Of the n largest values of a vector, n of one magnitude capture (Σ|x|)²/n of its squared length; that is
    most at some n, 54 % of the values of a Gaussian one.
    """
    magnitudes = np.sort(np.abs(vectors), axis=1)[:, ::-1]
    captured = np.square(np.cumsum(magnitudes, axis=1)) / np.arange(1, magnitudes.shape[1] + 1)
    least = magnitudes[np.arange(len(vectors)), captured.argmax(axis=1)]
    return np.where(np.abs(vectors) >= least[:, None], vectors, 0.0)


def _already(b: Floats, a: Floats) -> tuple[Signs, Signs] | None:
    """The signs of factors each of whose directions has one magnitude; else None."""
    live = b.any(axis=0) & a.any(axis=1)
    b, a = b[:, live], a[live]
    for factor in (b.T, a):
        magnitudes = np.abs(factor)
        one = (magnitudes == 0) | (magnitudes == magnitudes.max(axis=1, initial=0, keepdims=True))
        if not one.all():
            return None
    return np.sign(b).astype(np.int8), np.sign(a).astype(np.int8)


def _scales(b_signs: Floats, a_signs: Floats, b: Floats, a: Floats) -> Floats:
    """The c [r] of least ‖b·a − Σ c_i·b_i·a_iᵀ‖: its normal equations, r by r."""
    products = (b_signs.T @ b_signs) * (a_signs @ a_signs.T)
    goal = np.einsum("ik,ki->i", b_signs.T @ b, a @ a_signs.T)
    scales: Floats = np.linalg.lstsq(products, goal, rcond=None)[0]
    return scales
