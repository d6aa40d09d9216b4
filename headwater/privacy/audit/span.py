"""Reading inputs out of a linear layer's gradient: :func:`residuals` and :func:`energies`.

Of y = Wx the gradient of W is Σ_t g_t x_tᵀ: its rows lie in the span of the inputs. Of LoRA, W + BA, so do
those of A's, Σ_t (Bᵀg_t) x_tᵀ, which has r rows: while no more than r inputs met in it, each input lies in
the span of its rows, and one that was not there does not (for whole layers: DAGER, Petrov et al. 2024, arXiv
2405.15586). Of the first layer the inputs are the embeddings, which everybody knows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.privacy.audit.intervals import Floats

_RANK = 1e-5
"""Singular values below that part of the largest are rounding."""


def residuals(gradient: npt.ArrayLike, candidates: npt.ArrayLike) -> Floats:
    """How far each candidate is from the span of the gradient's rows: 0 in it, 1 at a right angle [n].

    Args:
        gradient: of A, or of several layers with one input on top of each other [r, d].
        candidates: inputs that there may have been [n, d].
    """
    rows, inputs = np.asarray(gradient, np.float64), _unit(candidates)
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    kept = basis[sizes > _RANK * max(sizes.max(initial=0.0), 1e-300)]
    found: Floats = np.linalg.norm(inputs - inputs @ kept.T @ kept, axis=1)
    return found


def energies(update: npt.ArrayLike, candidates: npt.ArrayLike) -> Floats:
    """How much of an update lies along each candidate, beyond their mean [n].

    A ranking, no proof: for updates that noise, an optimizer or a codec moved out of the inputs' span.

    Args:
        update: of A, or of several layers with one input [r, d].
        candidates: inputs that there may have been [n, d].
    """
    given = np.asarray(candidates, np.float64)
    found: Floats = np.linalg.norm(_unit(given - given.mean(0)) @ np.asarray(update, np.float64).T, axis=1)
    return found


def _unit(vectors: npt.ArrayLike) -> Floats:
    values = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    found: Floats = values / np.where(norms > 0, norms, 1)
    return found
