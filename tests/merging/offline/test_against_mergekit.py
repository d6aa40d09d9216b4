"""Rules without chance beside mergekit, where ``MERGEKIT`` names a Python that has it (``make test-slow``).

It needs an environment of its own: ``python -m venv m && m/bin/pip install mergekit==0.1.5``. It is LGPL, and
nothing of it is here: a child process merges the same whole weights.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.merging.offline.rule import Rule, ValueRule
from headwater.merging.offline.rules.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from headwater.merging.offline.rules.linear import Mean, TaskArithmetic
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.merging.offline.rules.sce import Sce
from headwater.merging.offline.rules.sphere import Karcher, Slerp
from headwater.merging.offline.rules.ties import Ties
from tests.laws.offline_rule_laws import Floats
from tests.merging.offline.rule_runs import SHARES, WIDE, folded, merged

STOCKED, OPPOSED = 3, 0
"""Seeds of adapters whose mean cosine is positive, and negative."""
MERGEKIT = os.environ.get("MERGEKIT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MERGEKIT, reason="MERGEKIT names no Python with mergekit"),
]
PROGRAM = """
import json, sys, numpy as np, torch
from mergekit.merge_methods import merge_tensors
place, (method, parameters, based) = sys.argv[1], json.loads(sys.argv[2])
tensors = [torch.from_numpy(value) for value in np.load(place + "/given.npz").values()]
weight = parameters.pop("weight", None)
if weight is not None:
    parameters["weight"] = dict(enumerate(weight, start=int(based)))
for name in ("density", "gamma"):
    if name in parameters:
        parameters[name] = dict.fromkeys(range(1, len(tensors)), parameters[name])
found = merge_tensors(tensors, method, parameters=parameters, ids=range(len(tensors)),
                      base_index=0 if based else None)
np.save(place + "/found.npy", found.numpy())
"""


class Peer:
    """mergekit, in a process of its own."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def merge(self, method: str, given: Sequence[Floats], *, based: bool = True, **parameters: Any) -> Floats:
        """Whole weights by a method; with ``based`` the first is the base."""
        np.savez(self._place / "given.npz", *given)
        text = json.dumps([method, parameters, based])
        command = [MERGEKIT, "-c", PROGRAM, str(self._place), text]
        ran = subprocess.run(command, capture_output=True, text=True, env=_without_paths(os.environ))
        assert not ran.returncode, ran.stderr[-2000:]
        found: Floats = np.load(self._place / "found.npy")
        return found

    def change(self, method: str, taus: Sequence[Floats], **parameters: Any) -> Floats:
        """What it adds to a base where the adapters add ``taus``."""
        base = np.random.default_rng(7).normal(size=taus[0].shape)
        return self.merge(method, [base, *(base + tau for tau in taus)], **parameters) - base


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def _without_paths(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("PYTHON")}


def some(size: int = 600, count: int = 3) -> list[Floats]:
    return list(np.random.default_rng(3).normal(size=(count, size)))


def close(ours: Floats, theirs: Floats) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * float(np.abs(theirs).max()))


SHARED = {"normalize": True, "rescale": False, "weight": SHARES}


@pytest.mark.parametrize(
    ("rule", "method", "parameters"),
    [
        (Ties(density=0.3), "ties", {"density": 0.3, **SHARED}),
        (Breadcrumbs(density=0.3, gamma=0.05), "breadcrumbs", {"density": 0.3, "gamma": 0.05, **SHARED}),
        (
            BreadcrumbsTies(density=0.3, gamma=0.05),
            "breadcrumbs_ties",
            {"density": 0.3, "gamma": 0.05, **SHARED},
        ),
        (Breadcrumbs(density=0.3, gamma=0.0), "breadcrumbs", {"density": 0.3, "gamma": 0.0, **SHARED}),
        (Sce(density=0.3), "sce", {"select_topk": 0.3}),
        (Sce(density=1.0), "sce", {"select_topk": 1.0}),
    ],
    ids=["ties", "breadcrumbs", "breadcrumbs_ties", "no outliers", "sce", "sce of all"],
)
def test_values_are_merged_alike(
    rule: ValueRule, method: str, parameters: dict[str, Any], peer: Peer
) -> None:
    close(folded(rule, some(), SHARES), peer.change(method, some(), **parameters))


@pytest.mark.parametrize(
    ("rule", "method", "parameters", "weights"),
    [
        (Mean(), "task_arithmetic", {"weight": SHARES, "normalize": True}, SHARES),
        (
            TaskArithmetic(),
            "task_arithmetic",
            {"weight": [1.0, -0.4, 0.7], "normalize": False},
            [1, -0.4, 0.7],
        ),
        (ModelStock(), "model_stock", {}, None),
    ],
    ids=["mean", "task_arithmetic", "model_stock"],
)
def test_folders_are_merged_as_the_whole_weights(
    rule: Rule, method: str, parameters: dict[str, Any], weights: list[float] | None, peer: Peer
) -> None:
    ours, taus = merged(rule, WIDE, [2, 3, 2], weights, seed=STOCKED)
    close_to_float32(ours, peer.change(method, taus, **parameters))


def test_directions_are_merged_alike(peer: Peer) -> None:
    ours, taus = merged(Slerp(), WIDE, [2, 3], [0.7, 0.3])
    flat = [tau.reshape(1, -1) for tau in taus]  # mergekit: of each row of a batch
    close_to_float32(ours.reshape(1, -1), peer.merge("slerp", flat, t=0.3))
    ours, taus = merged(Karcher(), WIDE, [2, 3, 2])
    close_to_float32(ours, peer.merge("karcher", taus, based=False, max_iter=200, tol=1e-12))


def close_to_float32(ours: Floats, theirs: Floats) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(np.abs(theirs).max()))


class TestWhereTheyDiffer:
    """The papers have no case for it, or mergekit leaves them."""

    def test_a_tie_of_signs_gives_nothing_and_with_mergekit_the_positive_value(self, peer: Peer) -> None:
        taus = [np.array([0.5, 1.0]), np.array([-0.5, 1.0])]
        assert folded(Ties(density=1.0), taus, [0.5, 0.5]).tolist() == [0, 1]
        base = [np.zeros(2), *taus]
        theirs = peer.merge("ties", base, density=1.0, weight=[0.5, 0.5], normalize=True, rescale=False)
        assert theirs.tolist() == [0.5, 1]

    def test_equal_adapters_come_back_from_sce_and_with_mergekit_nothing(self, peer: Peer) -> None:
        tau = some()[0]
        close(folded(Sce(density=0.3), [tau, tau], [0.5, 0.5]), tau)
        assert not peer.merge("sce", [np.zeros_like(tau), tau, tau], select_topk=0.3).any()

    def test_breadcrumbs_of_few_values_keeps_one_and_with_mergekit_none(self, peer: Peer) -> None:
        tau = np.array([0.3, -0.2, 0.1])
        assert folded(Breadcrumbs(density=0.2), [tau], [1.0]).tolist() == [0.3, 0, 0]
        theirs = peer.merge(
            "breadcrumbs", [np.zeros(3), tau], density=0.2, weight=[1.0], normalize=True, rescale=False
        )
        assert not theirs.any()

    def test_opposed_adapters_give_the_base_and_with_mergekit_what_none_wants(self, peer: Peer) -> None:
        """Model Stock's t = T·cos φ/(1 + (T−1)·cos φ) is below 0 where cos φ is: the mean turned around."""
        ours, taus = merged(ModelStock(), WIDE, [2, 3], seed=OPPOSED)
        assert float((taus[0] * taus[1]).sum()) < 0
        assert not ours.any()
        theirs = peer.change("model_stock", taus)
        assert float((theirs * (taus[0] + taus[1])).sum()) < 0
