"""Rules of ``headwater merge`` that draw, beside other libraries, on other tensors, and at their edges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.numpy import load_file, save_file

from headwater.errors import ConfigError
from headwater.merging.largest import BLOCK, Cut
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.merge import Merge
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import Rule
from headwater.merging.offline.rules.breadcrumbs import Breadcrumbs
from headwater.merging.offline.rules.consensus import Consensus
from headwater.merging.offline.rules.dare import DareLinear
from headwater.merging.offline.rules.della import DellaLinear
from headwater.merging.offline.rules.geometric_median import GeometricMedian
from headwater.merging.offline.rules.iso import IsoC
from headwater.merging.offline.rules.krum import Krum, MultiKrum
from headwater.merging.offline.rules.linear import Mean
from headwater.merging.offline.rules.magmax import MagMax
from headwater.merging.offline.rules.median import TrimmedMean
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.merging.offline.rules.named import named_rule
from headwater.merging.offline.rules.pcb import Pcb
from headwater.merging.offline.rules.sce import Sce
from headwater.merging.offline.rules.sphere import Karcher
from headwater.merging.offline.rules.ties import Knots, MagnitudePrune, Ties
from headwater.merging.offline.rules.tsv import TsvM
from tests.laws.offline_rule_laws import Floats, bench, write_adapter
from tests.merging.offline import dense_oracles as dense
from tests.merging.offline.rule_runs import (
    ONE,
    SHARES,
    TAUS,
    WIDE,
    Fixed,
    adapters,
    close,
    folded,
    merged,
)


class TestDraws:
    """Rules that draw, by the probabilities that they draw with."""

    def test_della_keeps_large_values_more_often_and_is_unbiased(self) -> None:
        rule = DellaLinear(density=0.6, epsilon=0.2)
        row = np.array([[0.1, -3.0, 2.0, 0.5], [4.0, 3.0, -2.0, 1.0]])
        numbers = (np.arange(1000) + 0.5) / 1000
        drawn = np.stack([rule.prune(row.copy(), Fixed(np.full(row.shape, u))) for u in numbers])
        expected = np.array([[0.4, 0.8, 2 / 3, 1.6 / 3], [0.8, 2 / 3, 1.6 / 3, 0.4]])
        np.testing.assert_allclose((drawn != 0).mean(axis=0), expected, atol=1e-3)
        np.testing.assert_allclose(drawn.mean(axis=0), row, rtol=3e-3)

    def test_della_refuses_what_is_no_probability(self) -> None:
        for density, epsilon in ((0.9, 0.2), (0.1, 0.1)):
            with pytest.raises(ConfigError, match=r"--epsilon of rule della_linear: expected probabilities"):
                named_rule("della_linear", {"density": density, "epsilon": epsilon})
        with pytest.raises(ConfigError, match="probabilities"):
            named_rule("della_linear", {"density": 1.0})

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

    def test_breadcrumbs_of_few_values_has_no_outlier_and_with_a_slice_up_to_minus_zero_nothing(self) -> None:
        few = np.array([0.3, -0.2, 0.1, 0.05])
        assert folded(Breadcrumbs(density=0.5), [few], [1.0]).tolist() == [0.3, -0.2, 0, 0]
        outliers = int(0.01 * few.size)
        assert np.argsort(np.abs(few))[2:-outliers].size == 0  # mergekit at a6e4028

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


class TestOtherTensors:
    """What rules of matrices do with tensors that are no LoRA."""

    def test_a_weight_that_was_trained_as_a_whole_is_a_matrix_where_the_base_has_it(
        self, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(0)
        base = rng.normal(size=(4, 6)).astype(np.float32)
        weights = [base + rng.normal(size=base.shape).astype(np.float32) for _ in range(2)]
        made = [self._adapter(tmp_path / str(i), "score.weight", w) for i, w in enumerate(weights)]
        read = {"score.weight": base}.get
        merge = Merge(Adapters.open(made, None, base=read), Recipe(TsvM()))
        taus = [w.astype(np.float64) - base for w in weights]
        close(dict(merge.plain())["base_model.model.score.weight"] - base, dense.tsv_m(taus, [2, 2]))
        without = Merge(Adapters.open(made, None), Recipe(TsvM()))
        close(dict(without.plain())["base_model.model.score.weight"], np.mean(weights, axis=0))

    def test_a_column_is_no_matrix_and_is_averaged(self, tmp_path: Path) -> None:
        columns = [np.array([[2.0], [0.5], [1.5]]), np.array([[0.0], [1.0], [3.0]])]
        made = [
            self._adapter(tmp_path / str(i), "k.ia3_l", c, peft_type="IA3") for i, c in enumerate(columns)
        ]
        merge = Merge(Adapters.open(made, None), Recipe(TsvM()))
        close(dict(merge.plain())["base_model.model.k.ia3_l"], np.mean(columns, axis=0))

    @pytest.mark.parametrize("rule", [Krum(), MultiKrum(selected=1), GeometricMedian()])
    def test_a_hostile_head_is_told_apart_without_its_base(self, rule: Rule, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        start = rng.normal(size=(4, 6))
        heads = [start + 0.01 * rng.normal(size=start.shape) for _ in range(4)] + [start + 100]
        made = [self._adapter(tmp_path / str(i), "score.weight", h) for i, h in enumerate(heads)]
        merge = Merge(Adapters.open(made, None), Recipe(rule))
        assert np.abs(dict(merge.plain())["base_model.model.score.weight"] - start).max() < 0.1

    def test_krum_of_prompts(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        prompts = [rng.normal(size=(2, 3)) for _ in range(5)]
        sizes = {"num_virtual_tokens": 2, "token_dim": 3}
        made = [
            self._adapter(tmp_path / str(i), "prompt_embeddings", p, peft_type="PROMPT_TUNING", **sizes)
            for i, p in enumerate(prompts)
        ]
        merge = Merge(Adapters.open(made, None), Recipe(Krum()))
        best = int(np.argmin(dense.krum_scores(prompts, 1)))
        close(next(iter(dict(merge.plain()).values())), prompts[best])

    def _adapter(self, path: Path, name: str, values: Floats, **config: object) -> Path:
        write_adapter(path, {ONE: (np.ones((3, 1)), np.ones((1, 2)))} if not config else {})
        tensors = load_file(path / "adapter_model.safetensors")
        name = name if name == "prompt_embeddings" else f"base_model.model.{name}"
        save_file(
            tensors | {name: values.astype(np.float32)},
            path / "adapter_model.safetensors",
        )
        settings = json.loads((path / "adapter_config.json").read_text())
        settings |= {"modules_to_save": [name.split(".")[0]] if not config else None} | config
        (path / "adapter_config.json").write_text(json.dumps(settings))
        return path


class TestFactors:
    """Space ``factors``, where a trim is of an adapter as a whole."""

    def test_ties_trims_all_factors_together(self) -> None:
        rng, factors = np.random.default_rng(5), []
        with bench() as on:
            folders = []
            for scale in (1.0, 3.0):
                b = np.round(rng.normal(size=(5, 2)) * scale, 1).astype(np.float32)
                a = rng.normal(size=(2, 4)).astype(np.float32)
                factors.append(np.concatenate([b.ravel(), a.ravel()]).astype(np.float64))
                folders.append(on.adapter({ONE: (b, a)}))
            got = on.merge(Ties(density=0.4), folders, [2, 1], space="factors")[f"base_model.model.{ONE}"]
        joined = dense.elected([dense.trimmed(flat, 0.4) for flat in factors], [2 / 3, 1 / 3])
        close(got, joined[:10].reshape(5, 2) @ joined[10:].reshape(2, 4))


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
