"""Reading inputs out of a linear layer's gradient: :func:`residuals` and :func:`energies`.

Of y = Wx the gradient of W is Σ_t g_t x_tᵀ: its rows lie in the span of the inputs. Of LoRA, W + BA, so do
those of A's, Σ_t (Bᵀg_t) x_tᵀ, which has r rows: while no more than r inputs met in it, each input lies in
the span of its rows, and one that was not there does not (for whole layers: DAGER, Petrov et al. 2024, arXiv
2405.15586). Of the first layer the inputs are the embeddings, which everybody knows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.floating]
_RANK = 1e-5
"""Singular values below that part of the largest are rounding."""


def directions(candidates: Vectors, *, centred: bool = False) -> Vectors:
    """The candidates, each of length 1 [n, d]; zeros stay.

    Args:
        candidates: inputs that there may have been [n, d].
        centred: without their mean, which embeddings share.
    """
    values = candidates - candidates.mean(0) if centred else candidates
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    found: Vectors = values / np.where(norms > 0, norms, 1)
    return found


def residuals(gradient: Vectors, unit: Vectors) -> Vectors:
    """How far each candidate is from the span of the gradient's rows: 0 in it, 1 at a right angle [n].

    float32 candidates in it are at 5e-4 or less.

    Args:
        gradient: of A, or of several layers with one input on top of each other [r, d].
        unit: candidates of length 1 [n, d].
    """
    _, sizes, basis = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
    kept = basis[sizes > _RANK * max(sizes.max(initial=0.0), 1e-300)].astype(unit.dtype)
    found: Vectors = np.sqrt(np.maximum(0, 1 - np.square(unit @ kept.T).sum(1)))
    return found


def energies(update: Vectors, unit: Vectors) -> Vectors:
    """How much of an update lies along each candidate [n].

    A ranking, no proof: for updates that noise, an optimizer or a codec moved out of the inputs' span.

    Args:
        update: of A, or of several layers with one input [r, d].
        unit: candidates of length 1, best centred [n, d].
    """
    found: Vectors = np.linalg.norm(unit @ update.T.astype(unit.dtype), axis=1)
    return found
