"""Each rule of ``headwater merge`` against golden vectors, and against formulas on whole matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from headwater.merging.offline.rules.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from headwater.merging.offline.rules.consensus import Consensus
from headwater.merging.offline.rules.dare import DareLinear
from headwater.merging.offline.rules.geometric_median import GeometricMedian
from headwater.merging.offline.rules.iso import IsoC, IsoCts
from headwater.merging.offline.rules.krum import Krum, MultiKrum
from headwater.merging.offline.rules.lore import Lore
from headwater.merging.offline.rules.magmax import MagMax
from headwater.merging.offline.rules.median import Median, TrimmedMean
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.merging.offline.rules.opcm import Opcm
from headwater.merging.offline.rules.pcb import Pcb
from headwater.merging.offline.rules.sce import Sce
from headwater.merging.offline.rules.sphere import Karcher, Slerp
from headwater.merging.offline.rules.ties import Knots, MagnitudePrune, Ties
from headwater.merging.offline.rules.tsv import TsvM
from tests.merging.offline import dense_oracles as dense
from tests.merging.offline.rule_runs import (
    SHARES,
    SQUARE,
    TAUS,
    WIDE,
    Fixed,
    close,
    folded,
    merged,
)

G = np.array([[1, 1], [1.1, 0.9], [0.9, 1.2], [1, 1.05], [10, -10]])
"""Of golden vector F13."""


class TestGolden:
    """Vectors of the algorithm reference, computed by hand and by exact fractions."""

    def test_ties_f2(self) -> None:
        rule = Ties(density=0.5)
        close(folded(rule, TAUS, [1 / 3] * 3), np.array([0.85, -0.7, 0, 0.8, 0.55, 0]), 1e-12)
        weighted = np.array([0.9142857143, -0.6142857143, 0, 0.8, 0.5714285714, 0])
        close(folded(rule, TAUS, SHARES), weighted, 1e-9)

    def test_a_tie_of_signs_gives_nothing_and_with_peft_the_positive_one(self) -> None:
        tied = [np.array([0.5]), np.array([-0.5])]
        assert folded(Ties(density=1), tied, [0.5, 0.5]) == 0
        theirs = merge_utils.ties([torch.tensor(t) for t in tied], torch.ones(2), 1.0)
        assert theirs == 0.5

    def test_sce_f2b(self) -> None:
        four = [tau[:4] for tau in TAUS]
        expected = np.array([0.8470588235, -0.7039215686, 0, 0])
        close(folded(Sce(density=0.5), four, [1 / 3] * 3), expected, 1e-9)
        close(dense.sce(four, 0.5), expected, 1e-9)

    def test_dare_f6_is_unbiased_and_the_rescaling_of_sums_of_magnitudes_is_not(self) -> None:
        delta = np.array([2.0, -4.0, 6.0])
        ours, theirs = [], []
        for mask in itertools.product([True, False], repeat=3):
            ours.append(DareLinear(density=0.5).prune(delta, Fixed(np.where(mask, 0.0, 0.9))))
            kept = delta * np.array(mask)
            theirs.append(kept * (np.abs(delta).sum() / np.abs(kept).sum() if any(mask) else 0))
        close(np.mean(ours, axis=0), delta, 1e-12)
        close(np.var(ours, axis=0), np.array([4.0, 16, 36]), 1e-12)
        close(np.mean(theirs, axis=0), np.array([2.625, -3.6, 4.275]), 1e-12)

    def test_robust_f13(self) -> None:
        scores = Krum(faulty=1).scores(G @ G.T)
        np.testing.assert_allclose(scores, [0.0225, 0.0525, 0.0825, 0.035, 400.02], atol=1e-9)
        assert Krum(faulty=1).coefficients(np.full(5, 0.2), G @ G.T).tolist() == [1, 0, 0, 0, 0]
        rows = G.copy()
        rows[3] = [1, 1.1]
        trimmed = TrimmedMean(drop=1).merge(rows.copy(), np.full(5, 0.2))
        close(trimmed, np.array([1.0333333333, 1.0]), 1e-9)
        close(Median().merge(rows.copy(), np.full(5, 0.2)), np.array([1.0, 1.0]), 1e-12)

    def test_two_directions(self) -> None:
        upright = np.eye(2)
        half = np.array([0.5, 0.5])
        close(Slerp().coefficients(half, upright), np.sqrt(half), 1e-12)
        close(Karcher().coefficients(half, upright), np.sqrt(half), 1e-9)
        assert not ModelStock().coefficients(half, upright).any()
        close(ModelStock().coefficients(half, np.array([[1, 0.5], [0.5, 1]])), half * 2 / 3, 1e-12)
        # beyond a right angle the formula would turn the mean around
        assert not ModelStock().coefficients(half, np.array([[1, -0.5], [-0.5, 1]])).any()


class TestAgainstWholeMatrices:
    """Through folders, bases and cores, against formulas on B·A itself."""

    def test_model_stock(self) -> None:
        got, taus = merged(ModelStock(), WIDE, [2, 3, 1], [5, 3, 2])
        close(got, dense.model_stock(taus, SHARES))

    def test_slerp(self) -> None:
        got, taus = merged(Slerp(), WIDE, [2, 3], [7, 3])
        close(got, dense.slerp(taus[0], taus[1], 0.3))

    def test_karcher(self) -> None:
        got, taus = merged(Karcher(), WIDE, [2, 3, 1], [5, 3, 2])
        close(got, dense.karcher(taus, SHARES))

    @pytest.mark.parametrize("faulty", [0, 1])
    def test_krum(self, faulty: int) -> None:
        for seed in range(4):
            got, taus = merged(Krum(faulty=faulty), WIDE, [2, 3, 1, 1, 2], seed=seed)
            close(got, taus[int(np.argmin(dense.krum_scores(taus, faulty)))])

    def test_multi_krum(self) -> None:
        got, taus = merged(MultiKrum(faulty=1, selected=3), WIDE, [2, 3, 1, 1, 2])
        best = np.argsort(dense.krum_scores(taus, 1))[:3]
        close(got, sum(taus[i] for i in best) / 3)

    def test_geometric_median(self) -> None:
        got, taus = merged(GeometricMedian(iterations=2000), WIDE, [2, 3, 1], [5, 3, 2])
        close(got, dense.geometric_median(taus, SHARES), 1e-5)

    def test_the_geometric_median_stays_where_most_are(self) -> None:
        points = np.concatenate([np.ones((3, 4)), 1e6 * np.eye(4)[:2]])
        c = GeometricMedian(iterations=5000).coefficients(np.full(5, 0.2), points @ points.T)
        assert np.abs(c @ points - 1).max() < 1e-3
        assert np.abs(points.mean(axis=0) - 1).max() > 1e5

    @pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
    def test_ties(self, density: float) -> None:
        got, taus = merged(Ties(density=density), SQUARE, [2, 3, 2], [5, 3, 2])
        close(got, dense.elected([dense.trimmed(tau, density) for tau in taus], SHARES))

    def test_magnitude_prune(self) -> None:
        got, taus = merged(MagnitudePrune(density=0.4), SQUARE, [2, 3, 2], [5, 3, 2])
        close(got, sum(p * dense.trimmed(tau, 0.4) for p, tau in zip(SHARES, taus, strict=True)))

    def test_breadcrumbs(self) -> None:
        rule, ties = Breadcrumbs(density=0.5, gamma=0.1), BreadcrumbsTies(density=0.5, gamma=0.1)
        got, taus = merged(rule, SQUARE, [2, 3, 2], [5, 3, 2])
        kept = [dense.sifted(tau, 0.5, 0.1) for tau in taus]
        close(got, sum(p * tau for p, tau in zip(SHARES, kept, strict=True)))
        close(merged(ties, SQUARE, [2, 3, 2], [5, 3, 2])[0], dense.elected(kept, SHARES))

    def test_knots(self) -> None:
        got, taus = merged(Knots(density=0.3), WIDE, [2, 2, 1], [5, 3, 2])
        left = np.linalg.svd(np.concatenate(taus, axis=1))[0][:, :5]
        kept = [dense.trimmed(left.T @ tau, 0.3) for tau in taus]
        close(got, left @ dense.elected(kept, SHARES))

    def test_magmax(self) -> None:
        got, taus = merged(MagMax(), SQUARE, [2, 3, 2])
        stack = np.stack(taus)
        close(got, np.take_along_axis(stack, np.abs(stack).argmax(axis=0)[None], 0)[0])

    @pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
    def test_sce(self, density: float) -> None:
        got, taus = merged(Sce(density=density), SQUARE, [2, 3, 2])
        close(got, dense.sce(taus, density))

    @pytest.mark.parametrize("strictness", [0.2, 0.6, 1.5])
    def test_consensus(self, strictness: float) -> None:
        got, taus = merged(Consensus(strictness=strictness, agreement=2), SQUARE, [2, 3, 2])
        close(got, dense.consensus(taus, strictness, 2))

    @pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
    def test_pcb(self, density: float) -> None:
        got, taus = merged(Pcb(density=density), SQUARE, [2, 3, 2])
        close(got, dense.pcb(taus, density))

    def test_median_and_trimmed_mean(self) -> None:
        got, taus = merged(Median(), SQUARE, [2, 3, 2, 1])
        middle = np.sort(np.stack(taus), axis=0)[1:3].mean(axis=0)
        close(got, middle)
        close(merged(TrimmedMean(), SQUARE, [2, 3, 2, 1])[0], middle)

    def test_tsv_m(self) -> None:
        got, taus = merged(TsvM(), WIDE, [2, 3, 1])
        close(got, dense.tsv_m(taus, [2, 3, 1]))
        crowded, taus = merged(TsvM(), WIDE, [5, 5, 5])
        close(crowded, dense.tsv_m(taus, [2, 2, 2]))

    def test_iso_c(self) -> None:
        got, taus = merged(IsoC(), WIDE, [2, 3, 1])
        close(got, dense.iso_c(taus, 6))
        full, taus = merged(IsoC(), WIDE, [5, 5, 5])
        close(full, dense.iso_c(taus, 7))

    @pytest.mark.parametrize("common", [0.3, 0.8, 1.0])
    def test_iso_cts(self, common: float) -> None:
        rng = np.random.default_rng(3)
        stack = rng.normal(size=(3, 12, 10))
        close(IsoCts(common=common).merge(stack, np.ones(3), 10), dense.iso_cts(list(stack), common))

    def test_iso_cts_in_the_core_is_that_of_the_directions_there_are(self) -> None:
        got, taus = merged(IsoCts(common=0.5), (14, 13), [3, 3, 3])
        left = np.linalg.svd(np.concatenate(taus, axis=1))[0][:, :9]
        right = np.linalg.svd(np.concatenate(taus, axis=0))[2][:9]
        cores = [left.T @ tau @ right.T for tau in taus]
        close(got, left @ dense.iso_cts(cores, 0.5) @ right)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
    def test_opcm(self, alpha: float) -> None:
        got, taus = merged(Opcm(alpha=alpha), WIDE, [2, 3, 1])
        longest_first = sorted(taus, key=lambda tau: -float(np.linalg.norm(tau)))
        close(got, dense.opcm(longest_first, alpha))

    def test_lore(self) -> None:
        rule = Lore(threshold=0.7, amplify=0.6, iterations=6)
        got, taus = merged(rule, WIDE, [2, 3, 1])
        close(got, dense.lore(taus, 0.7, 0.6, 6))

    def test_lore_that_averages_the_own_parts_is_the_mean_whatever_the_threshold(self) -> None:
        got, taus = merged(Lore(threshold=0.7, amplify=1 / 3), WIDE, [2, 3, 1])
        close(got, sum(taus) / 3)
