"""Each rule of ``headwater merge`` against golden vectors, oracles on whole matrices, and other libraries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from headwater.errors import ConfigError
from headwater.merging.offline.fold import fold
from headwater.merging.offline.rule import BLOCK, Cut, Rule, ValueRule
from headwater.merging.offline.rules.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from headwater.merging.offline.rules.consensus import Consensus
from headwater.merging.offline.rules.dare import DareLinear
from headwater.merging.offline.rules.della import DellaLinear
from headwater.merging.offline.rules.geometric_median import GeometricMedian
from headwater.merging.offline.rules.iso import IsoC, IsoCts
from headwater.merging.offline.rules.krum import Krum, MultiKrum
from headwater.merging.offline.rules.linear import Mean
from headwater.merging.offline.rules.lore import Lore
from headwater.merging.offline.rules.magmax import MagMax
from headwater.merging.offline.rules.median import Median, TrimmedMean
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.merging.offline.rules.pcb import Pcb
from headwater.merging.offline.rules.sce import Sce
from headwater.merging.offline.rules.sphere import Karcher, Slerp
from headwater.merging.offline.rules.ties import Knots, MagnitudePrune, Ties
from headwater.merging.offline.rules.tsv import TsvM
from tests.laws.offline_rule_laws import Bench, Floats, bench
from tests.merging.offline import dense_oracles as dense

TAUS = [
    np.array([1.0, -0.5, 0.2, 0.0, 0.6, -0.1]),
    np.array([-0.4, 0.5, -0.3, 0.8, 0.1, -0.2]),
    np.array([0.7, -0.9, 0.1, -0.2, 0.5, 0.3]),
]
"""Of golden vectors F2 and F2b."""
G = np.array([[1, 1], [1.1, 0.9], [0.9, 1.2], [1, 1.05], [10, -10]])
"""Of golden vector F13."""
GENERATOR = np.random.default_rng(0)
ONE, WIDE, SQUARE = "m.q", (9, 7), (5, 4)
SHARES = [0.5, 0.3, 0.2]


def folded(rule: ValueRule, taus: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The rule on values that are already coordinates."""

    def read(i: int) -> Floats:
        values = taus[i].copy()
        if rule.trimmed:
            Cut.of(values, rule.kept).apply(values)
        return rule.prune(values, GENERATOR)

    return fold(rule, read, np.array(weights))


def adapters(
    on: Bench, shape: tuple[int, int], ranks: Sequence[int], seed: int = 0
) -> list[tuple[Path, Floats]]:
    """Folders of one module each, and what they change."""
    rng, found = np.random.default_rng(seed), []
    for rank in ranks:
        b = rng.normal(size=(shape[0], rank)).astype(np.float32)
        a = rng.normal(size=(rank, shape[1])).astype(np.float32)
        found.append((on.adapter({ONE: (b, a)}), b.astype(np.float64) @ a.astype(np.float64)))
    return found


def merged(
    rule: Rule,
    shape: tuple[int, int],
    ranks: Sequence[int],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Floats, list[Floats]]:
    """Through folders and their cores: the result as a matrix, and the changes that went in."""
    with bench() as on:
        made = adapters(on, shape, ranks, seed)
        result = on.merge(rule, [folder for folder, _ in made], weights)
        return result[f"base_model.model.{ONE}"], [tau for _, tau in made]


def close(got: Floats, expected: Floats, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max()))
    )


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
            ours.append(DareLinear(density=0.5).prune(delta, _Fixed(np.where(mask, 0.0, 0.9))))
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


class _Fixed(np.random.Generator):
    """Numbers that are said beforehand."""

    def __init__(self, numbers: Floats) -> None:
        super().__init__(np.random.PCG64(0))
        self.numbers = numbers

    def random(self, *args: object, **kwargs: object) -> Floats:  # type: ignore[override]  # one use
        return self.numbers


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

    def test_lore(self) -> None:
        rule = Lore(threshold=0.7, amplify=0.6, iterations=6)
        got, taus = merged(rule, WIDE, [2, 3, 1])
        close(got, dense.lore(taus, 0.7, 0.6, 6))

    def test_lore_that_averages_the_own_parts_is_the_mean_whatever_the_threshold(self) -> None:
        got, taus = merged(Lore(threshold=0.7, amplify=1 / 3), WIDE, [2, 3, 1])
        close(got, sum(taus) / 3)


class TestDraws:
    """Rules that draw, by the probabilities that they draw with."""

    def test_della_keeps_large_values_more_often_and_is_unbiased(self) -> None:
        rule = DellaLinear(density=0.6, epsilon=0.2)
        row = np.array([[0.1, -3.0, 2.0, 0.5], [4.0, 3.0, -2.0, 1.0]])
        numbers = (np.arange(1000) + 0.5) / 1000
        drawn = np.stack([rule.prune(row.copy(), _Fixed(np.full(row.shape, u))) for u in numbers])
        expected = np.array([[0.4, 0.8, 2 / 3, 1.6 / 3], [0.8, 2 / 3, 1.6 / 3, 0.4]])
        np.testing.assert_allclose((drawn != 0).mean(axis=0), expected, atol=1e-3)
        np.testing.assert_allclose(drawn.mean(axis=0), row, rtol=3e-3)

    def test_della_refuses_what_is_no_probability(self) -> None:
        with pytest.raises(ConfigError, match="probabilities"):
            DellaLinear(density=0.9, epsilon=0.2)
        with pytest.raises(ConfigError, match="probabilities"):
            DellaLinear(density=0.1, epsilon=0.1)

    def test_the_mean_of_many_dare_merges_is_the_mean(self) -> None:
        with bench() as on:
            made = adapters(on, WIDE, [2, 3])
            folders = [folder for folder, _ in made]
            draws = [
                on.merge(DareLinear(density=0.5), folders, seed=s)[f"base_model.model.{ONE}"]
                for s in range(300)
            ]
            mean = on.merge(Mean(), folders)[f"base_model.model.{ONE}"]
        error = np.linalg.norm(np.mean(draws, axis=0) - mean) / np.linalg.norm(mean)
        one = np.mean([np.linalg.norm(d - mean) for d in draws]) / np.linalg.norm(mean)
        assert error < 2 * one / np.sqrt(300)
        assert one > 0.3


class TestOtherLibraries:
    """PEFT where it is right, and where it is not."""

    def test_peft_prunes_the_same(self) -> None:
        theirs = merge_utils.magnitude_prune([torch.tensor(t) for t in TAUS], torch.tensor(SHARES), 0.5)
        close(folded(MagnitudePrune(density=0.5), TAUS, SHARES), theirs.numpy(), 1e-6)

    def test_peft_ties_agrees_for_weights_of_one_and_shrinks_by_the_count_for_shares(self) -> None:
        tensors = [torch.tensor(t) for t in TAUS]
        ours = folded(Ties(density=0.5), TAUS, [1.0] * 3)
        close(ours, merge_utils.ties(tensors, torch.ones(3), 0.5).numpy(), 1e-6)
        shares = merge_utils.ties(tensors, torch.tensor(SHARES), 0.5).numpy()
        close(shares, np.array([0.32, -0.215, 0, 0.24, 0.2, 0]), 1e-6)
        assert np.abs(folded(Ties(density=0.5), TAUS, SHARES)).sum() > 2.5 * np.abs(shares).sum()

    def test_a_weight_of_few_values_keeps_one_and_with_peft_none(self) -> None:
        few = np.array([0.3, -0.2, 0.1])
        assert folded(Ties(density=0.2), [few], [1.0]).tolist() == [0.3, 0, 0]
        assert not merge_utils.ties([torch.tensor(few)], torch.ones(1), 0.2).any()

    def test_breadcrumbs_of_few_values_has_no_outlier_and_with_mergekits_slice_nothing(self) -> None:
        few = np.array([0.3, -0.2, 0.1, 0.05])
        assert folded(Breadcrumbs(density=0.5), [few], [1.0]).tolist() == [0.3, -0.2, 0, 0]
        outliers = int(0.01 * few.size)
        assert np.argsort(np.abs(few))[2:-outliers].size == 0  # sparsify.magnitude_outliers

    def test_pcbs_code_has_no_number_for_equal_magnitudes_and_always_cuts_the_largest(self) -> None:
        equal = [np.array([0.5, -0.5, 0.5]), np.array([0.5, -0.5, -0.5])]
        with np.errstate(invalid="ignore"):
            assert np.isnan(dense.pcb(equal, 1.0)).any()
        assert np.isfinite(folded(Pcb(density=1), equal, [0.5, 0.5])).all()
        size = 1000
        assert int(size * (1 - 1e-4) - 1) == size - 2  # the upper end of its clamp: the second largest

    def test_whitening_over_vectors_of_a_null_space_depends_on_the_basis(self) -> None:
        """FusionBench's TSV-M takes side/T triplets of each, with LoRA mostly those of singular value 0."""
        rng = np.random.default_rng(0)
        taus = [rng.normal(size=(12, 1)) @ rng.normal(size=(1, 12)) for _ in range(3)]
        turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
        turned = [turn @ tau for tau in taus]
        theirs = np.linalg.norm(dense.tsv_m(turned, [4] * 3) - turn @ dense.tsv_m(taus, [4] * 3))
        ours = np.linalg.norm(
            TsvM().merge(np.stack(turned), np.ones(3), 12)
            - turn @ TsvM().merge(np.stack(taus), np.ones(3), 12)
        )
        size = np.linalg.norm(sum(taus))
        assert ours < 1e-9 * size
        assert theirs > 0.1 * size

    def test_flattening_over_a_null_space_shrinks_what_is_there(self) -> None:
        """The mean over all min(rows, columns) singular values, of which LoRA has few."""
        got, taus = merged(IsoC(), (30, 20), [2, 2])
        values = np.linalg.svd(sum(taus))[1]
        np.testing.assert_allclose(np.linalg.svd(got)[1][:4], values[:4].mean(), rtol=1e-5)
        assert values.mean() < 0.21 * values[:4].mean()


class TestWhatIsSpecial:
    """What a rule does at its edges, and refuses."""

    def test_consensus_loses_what_all_adapters_share_if_there_are_many(self) -> None:
        same = [TAUS[0]] * 4
        assert not folded(Consensus(strictness=0.4), same, [0.25] * 4).any()
        close(folded(Consensus(strictness=0.4), same[:3], [1 / 3] * 3), TAUS[0], 1e-12)

    def test_sce_counts_only_values_that_vary(self) -> None:
        taus = [np.array([1.0, 1, 1, 1, 5, 2]), np.array([1.0, 1, 1, 1, 9, 4])]
        got = folded(Sce(density=0.5), taus, [0.5, 0.5])  # half of the two that vary
        energies = np.array([25.0, 81])
        close(got, np.array([0, 0, 0, 0, energies @ [5, 9] / energies.sum(), 0]), 1e-12)

    def test_sce_without_a_value_that_varies_keeps_all(self) -> None:
        close(folded(Sce(density=0.1), [TAUS[0]] * 3, [1 / 3] * 3), TAUS[0], 1e-12)

    def test_magmax_gives_nothing_for_opposite_values(self) -> None:
        assert folded(MagMax(), [np.array([0.5, 2.0]), np.array([-0.5, 1.0])], [0.5, 0.5]).tolist() == [0, 2]

    def test_karcher_refuses_opposite_adapters(self) -> None:
        with pytest.raises(ConfigError, match="cancel out"):
            Karcher().coefficients(np.array([0.5, 0.5]), np.array([[1.0, -1], [-1, 1]]))

    def test_pcb_of_a_thousand_adapters_is_finite(self) -> None:
        taus = [np.random.default_rng(i).normal(size=8) for i in range(1000)]
        assert np.isfinite(folded(Pcb(), taus, [1e-3] * 1000)).all()

    def test_krum_refuses_more_hostile_adapters_than_it_can_take(self) -> None:
        with pytest.raises(ConfigError, match="at least 7"):
            Krum(faulty=2).coefficients(np.full(6, 1 / 6), np.eye(6))

    def test_trimmed_mean_refuses_to_drop_all(self) -> None:
        with pytest.raises(ConfigError, match="at least 5"):
            TrimmedMean(drop=2).merge(np.zeros((4, 3)), np.full(4, 0.25))

    @pytest.mark.parametrize("rule", [TsvM(), IsoC(), Knots(), ModelStock()])
    def test_rules_of_the_product_are_refused_for_factors(self, rule: Rule) -> None:
        with bench() as on, pytest.raises(ConfigError, match="product of the factors"):
            on.merge(rule, on.random(1, 2), space="factors")

    def test_a_kept_fraction_of_a_tie_is_the_earlier_values(self) -> None:
        same = np.ones(8)
        assert Cut.largest(same, 3).apply(same.copy()).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
        assert not Cut.largest(same, 0).apply(same.copy()).any()

    @pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, 2 * BLOCK + 5])
    def test_longer_arrays_than_a_block(self, size: int) -> None:
        rng = np.random.default_rng(size)
        taus = [np.round(rng.normal(size=size), 1) for _ in range(3)]  # many equal ones
        order = [np.lexsort((np.arange(size), -np.abs(tau)))[: int(0.3 * size)] for tau in taus]
        kept = [np.zeros(size) for _ in taus]
        for tau, own, best in zip(taus, kept, order, strict=True):
            own[best] = tau[best]
        for place in (0, BLOCK - 2, size - 1):
            one = dense.elected([own[place : place + 1] for own in kept], SHARES)
            close(folded(Ties(density=0.3), taus, SHARES)[place : place + 1], one, 1e-12)
        pruned = folded(MagnitudePrune(density=0.3), taus, SHARES)
        close(pruned, sum(p * own for p, own in zip(SHARES, kept, strict=True)), 1e-12)
