"""The laws of a rule of ``headwater merge``: inherit :class:`OfflineRuleLaws` and name the rule.

The adapters are PEFT folders on disk with two LoRA modules of mixed ranks and biases; compared are the
changes that they make, as whole matrices.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from headwater.errors import ConfigError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.merge import Merge
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import Rule

Floats = npt.NDArray[np.float64]
Factors = tuple[npt.NDArray[Any], npt.NDArray[Any]]
SHAPES: Mapping[str, tuple[int, int]] = {"layers.0.q": (9, 7), "layers.1.v": (6, 11)}


def write_adapter(
    path: Path,
    modules: Mapping[str, Factors],
    biases: Mapping[str, npt.NDArray[Any]] | None = None,
    alpha: float | None = None,
) -> Path:
    """A LoRA adapter as PEFT saves it: (B [rows, r], A [r, columns]) by module, s = 1 without ``alpha``."""
    path.mkdir()
    ranks = {name: b.shape[1] for name, (b, _) in modules.items()}
    rank = next(iter(ranks.values()), 1)
    tensors = {}
    for name, (b, a) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
    for name, bias in (biases or {}).items():
        tensors[f"base_model.model.{name}.lora_B.bias"] = np.ascontiguousarray(bias, np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "some/base", "target_modules": ["q", "v"],
        "r": rank, "lora_alpha": alpha or rank, "lora_bias": bool(biases),
        "rank_pattern": ranks, "alpha_pattern": {} if alpha else ranks,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


class Bench:
    """A folder in which adapters are made and merged."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0

    def adapter(
        self, modules: Mapping[str, Factors], biases: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> Path:
        self.made += 1
        return write_adapter(self.root / f"a{self.made}", modules, biases)

    def random(self, seed: int, count: int, *, scale: float = 1.0, turned: bool = False) -> list[Path]:
        """``count`` adapters of ranks 1 to 3 from the seed; ``turned``: the same changes of other factors."""
        rng, found = np.random.default_rng(seed), []
        for index in range(count):
            modules = {}
            for name, (rows, columns) in SHAPES.items():
                rank = 1 + (seed + index) % 3
                b = rng.integers(-64, 65, (rows, rank)) / 32 * scale
                a = rng.integers(-64, 65, (rank, columns)) / 32
                turn = np.diag(2.0 ** (index + np.arange(rank)))[::-1] if turned else np.eye(rank)
                modules[name] = (b @ turn, np.linalg.inv(turn) @ a)
            biases = {name: rng.integers(-64, 65, rows) / 32 * scale for name, (rows, _) in SHAPES.items()}
            found.append(self.adapter(modules, biases))
        return found

    def merge(
        self, rule: Rule, folders: Sequence[Path], weights: Sequence[float] | None = None, **recipe: Any
    ) -> dict[str, Floats]:
        """What the merged adapter changes, as whole matrices."""
        merge = Merge(Adapters.open(folders, weights), Recipe(rule, **recipe))
        changes = {name: weight.b @ weight.a for name, weight in merge.modules()}
        return changes | dict(merge.plain())

    def changes(self, folder: Path) -> dict[str, Floats]:
        """What one adapter changes."""
        adapters = Adapters.open([folder], None)
        found = {}
        for module in adapters.modules:
            b, a = adapters.folders[0].factors(module)
            found[module] = b @ a
        return found | {name: adapters.value(0, name) for name in adapters.plain}


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench that is swept away."""
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(Path(folder))


def require_close(got: Mapping[str, Floats], expected: Mapping[str, Floats], tolerance: float = 1e-6) -> None:
    """The same names and, up to a part of the largest value, the same values."""
    assert got.keys() == expected.keys()
    size = max((float(np.abs(values).max()) for values in expected.values()), default=0.0) or 1.0
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=tolerance * size, err_msg=name)


few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
seeds = st.integers(0, 2**20)


class OfflineRuleLaws:
    """What holds for every rule; a class variable that is None says that a law is none of this rule's."""

    rule: ClassVar[Rule]
    """With settings under which it does what it is for."""
    whole: ClassVar[Rule | None]
    """With settings under which one adapter of weight 1 comes back; None if no paper implies it."""
    alike: ClassVar[Rule | None]
    """With settings under which identical adapters come back."""
    copies: ClassVar[int] = 3
    """Of identical adapters."""
    count: ClassVar[int] = 5
    """Of adapters, where the rule does not say."""
    scales: ClassVar[bool] = True
    """Whether adapters twice as large give a result twice as large."""

    def folders(self, on: Bench, seed: int, **how: Any) -> list[Path]:
        return on.random(seed, min(self.count, self.rule.most or self.count), **how)

    def test_it_says_what_it_is(self) -> None:
        rule = type(self.rule)
        assert rule.line
        assert "\n" not in rule.line + rule.source
        assert rule.source
        assert rule.passes in (1, 2)
        for name, field in rule.model_fields.items():
            assert field.description, name
            assert field.metadata, f"{name} has no bounds"

    @few
    @given(seed=seeds, data=st.data())
    def test_order_changes_no_bit(self, seed: int, data: st.DataObject) -> None:
        with bench() as on:
            folders = self.folders(on, seed)
            weights = [1.0 + i % 3 for i in range(len(folders))] if self.rule.weighted else None
            order = data.draw(st.permutations(range(len(folders))))
            first = on.merge(self.rule, folders, weights)
            other = on.merge(
                self.rule,
                [folders[i] for i in order],
                None if weights is None else [weights[i] for i in order],
            )
            assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in other.items()}

    @few
    @given(seed=seeds)
    def test_one_adapter_of_weight_one_comes_back(self, seed: int) -> None:
        if self.whole is None:
            pytest.skip("its paper does not imply it")
        with bench() as on:
            folders = on.random(seed, 1)
            require_close(on.merge(self.whole, folders), on.changes(folders[0]))

    @few
    @given(seed=seeds)
    def test_identical_adapters_come_back(self, seed: int) -> None:
        if self.alike is None:
            pytest.skip("its paper does not imply it")
        with bench() as on:
            count = min(max(self.copies, self.alike.least), self.alike.most or 9)
            folders = [on.random(seed, 1)[0] for _ in range(count)]
            require_close(on.merge(self.alike, folders), on.changes(folders[0]))

    @few
    @given(seed=seeds)
    def test_adapters_that_change_nothing_merge_to_nothing(self, seed: int) -> None:
        with bench() as on:
            for values in on.merge(self.rule, self.folders(on, seed, scale=0.0)).values():
                assert not values.any()

    @few
    @given(seed=seeds)
    def test_the_result_is_finite_and_has_the_scale_of_the_adapters(self, seed: int) -> None:
        with bench() as on:
            once = on.merge(self.rule, self.folders(on, seed))
            assert all(np.isfinite(values).all() for values in once.values())
            require_close(
                on.merge(self.rule, self.folders(on, seed), scale=0.5), {k: 0.5 * v for k, v in once.items()}
            )
            if self.scales and not self.draws():
                twice = on.merge(self.rule, self.folders(on, seed, scale=2.0))
                require_close(twice, {k: 2 * v for k, v in once.items()})

    @few
    @given(seed=seeds)
    def test_the_same_seed_gives_the_same_bits(self, seed: int) -> None:
        with bench() as on:
            folders = self.folders(on, seed)
            first, again, other = (on.merge(self.rule, folders, seed=s) for s in (1, 1, 2))
            assert all(np.array_equal(first[k], again[k]) for k in first)
            assert self.draws() != all(np.array_equal(first[k], other[k]) for k in first)

    def draws(self) -> bool:
        """Whether the rule uses random numbers."""
        return False

    @few
    @given(seed=seeds)
    def test_other_factors_of_the_same_changes(self, seed: int) -> None:
        if self.draws():
            pytest.skip("it draws by an adapter's contents")
        with bench() as on:
            plain, turned = self.folders(on, seed), self.folders(on, seed, turned=True)
            require_close(on.merge(self.rule, turned), on.merge(self.rule, plain), 1e-4)

    def test_weights(self) -> None:
        with bench() as on:
            folders = self.folders(on, 1)
            uneven = [1.0 + i for i in range(len(folders))]
            if not self.rule.weighted:
                with pytest.raises(ConfigError, match="no weights"):
                    on.merge(self.rule, folders, uneven)
            elif self.rule.weighs:
                shares = on.merge(self.rule, folders, uneven)
                require_close(on.merge(self.rule, folders, [8 * w for w in uneven]), shares)
                equal = on.merge(self.rule, folders)
                assert any(not np.allclose(equal[k], shares[k]) for k in equal)
            if not self.rule.negative:
                with pytest.raises(ConfigError):
                    on.merge(self.rule, folders, [-1.0] * len(folders))

    def test_too_few_and_too_many_adapters(self) -> None:
        with bench() as on:
            if self.rule.least > 1:
                with pytest.raises(ConfigError, match=f"at least {self.rule.least}"):
                    on.merge(self.rule, on.random(1, self.rule.least - 1))
            if self.rule.most is not None:
                with pytest.raises(ConfigError, match=f"at most {self.rule.most}"):
                    on.merge(self.rule, on.random(1, self.rule.most + 1))
