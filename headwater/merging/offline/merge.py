"""merge(): several adapters into one, as a PEFT folder, weight by weight.

A LoRA weight is merged in one of four *spaces*:

- ``product``: the changes s·B·A themselves, exactly, for rules that are linear (FlexLoRA's result,
  arXiv 2402.11505).
- ``core``: their coordinates in the bases of :mod:`headwater.merging.offline.low_rank`, for all other rules
  (arXiv 2509.17786). They depend on the changes and not on their factors. Linear rules give there what they
  give in ``product``.
- ``stack``: for linear rules, the factors side by side (FLoRA, arXiv 2409.05976): exact, of rank Σ r_i.
- ``factors``: A and B each by itself (FedIT, arXiv 2305.05644). A product of merged factors is not the merge
  of the products; it is there to compare, and for adapters that share their A.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from headwater.errors import ConfigError
from headwater.kernels import gate
from headwater.merging.largest import SAVED, Cut
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.common_axes import CommonAxes
from headwater.merging.offline.factor_merge import compressed_adapters, merged_factors
from headwater.merging.offline.fit import no_shares, require_factors, require_fit, task_of
from headwater.merging.offline.fold import fold
from headwater.merging.offline.low_rank import (
    Basis,
    Spectrum,
    inner_products,
    products_by_weight,
    truncated,
)
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.peft_folder import MAGNITUDES
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import (
    DataRule,
    FactorRule,
    Floats,
    LinearRule,
    MatrixRule,
    SequentialRule,
    StackRule,
    ValueRule,
)
from headwater.merging.offline.sequence import Sequence
from headwater.merging.offline.tensor_file import Array


@dataclass(frozen=True)
class MergedWeight:
    """One LoRA module after the merge.

    Args:
        a, b: float64 [r, columns] and [rows, r]; their product is the change.
        spectrum: what a truncation did; None where there was none.
    """

    a: Floats
    b: Floats
    spectrum: Spectrum | None


class Merge:
    """The merge of some adapters by a recipe. Each weight is computed when it is asked for.

    Args:
        adapters: that fit together.
        recipe: what is done with them.
        measured: what rows said of them, for a rule that goes by rows.

    Attributes:
        notes: what the reader of the result must know, filled while weights are computed.

    Raises:
        ConfigError: the rule takes more adapters, no negative weights, or factors of one rank.
    """

    def __init__(self, adapters: Adapters, recipe: Recipe, measured: Measured | None = None) -> None:
        self.adapters, self.recipe, self.measured = adapters, recipe, measured or Measured()
        rule = recipe.rule
        require_fit(rule, adapters)
        assert (measured is not None) == isinstance(rule, DataRule)
        self.weights = adapters.weights / adapters.weights.sum() if rule.weighs else adapters.weights
        self.notes = list(self.measured.notes)
        if recipe.chosen == "factors":
            require_factors(rule, adapters)
        self._coefficients: Floats | None = None
        self._task = task_of(rule, adapters, recipe.task)
        if self._task is not None:
            path = adapters.folders[self._task].path
            self.notes.append(
                f"adapter {recipe.task} of the {len(adapters)}, {path}, as the rule gives it back"
            )
        self._by_weight = {key: c * recipe.scale for key, c in self.measured.coefficients.items()}
        if isinstance(rule, LinearRule):
            self._find_coefficients(rule)
        self._sequence = Sequence.of(rule, adapters) if isinstance(rule, SequentialRule) else None
        self._places: dict[str, int] = {}
        self._cuts = self._cuts_of_adapters() if recipe.chosen == "factors" else None

    @property
    def coefficients(self) -> Floats | None:
        """The c_i [T] of a linear rule, times the scale; None for others, or if each weight has its own."""
        return self._coefficients

    @property
    def shares(self) -> Floats:
        """What each adapter counts [T]: its coefficient, or the mean of all weights' ones, or its weight."""
        if self._coefficients is not None:
            return self._coefficients
        if self.measured.shares is not None:
            return self.measured.shares
        found = list(self._by_weight.values())
        if found and isinstance(self.recipe.rule, DataRule):
            mean: Floats = np.mean(found, axis=0)
            return mean
        return self.weights

    def _find_coefficients(self, rule: LinearRule) -> None:
        scale, factors = self.recipe.scale, self.recipe.chosen == "factors"
        if rule.per_weight:
            for key, products in products_by_weight(self.adapters):
                self._by_weight[key] = rule.coefficients(self.weights, products) * scale
            return
        found = inner_products(self.adapters, differences=rule.differences) if rule.needs_products else None
        self._coefficients = rule.coefficients(self.weights, found) * scale
        if factors and not math.isclose(self._coefficients.sum(), scale, rel_tol=1e-9):
            raise no_shares(rule)

    @property
    def one_rank(self) -> int | None:
        """The rank that all modules must have, to which the result is padded; None where each has its own."""
        if not self.adapters.first.one_rank:
            return None
        ranks = [max(part.rank for part in f.modules.values()) for f in self.adapters.folders]
        if self.recipe.chosen == "factors":
            return max(ranks)
        return min(sum(ranks), self.recipe.truncation.rank or sum(ranks))

    def modules(self) -> Iterator[tuple[str, MergedWeight]]:
        """Each LoRA module, merged."""
        for module in self.adapters.modules:
            if self.recipe.chosen == "stack":
                yield module, self._stacked(module)
            elif self.recipe.chosen == "factors":
                yield module, self._factor_by_factor(module)
            else:
                yield module, self._in_core(module)

    def plain(self) -> Iterator[tuple[str, Floats]]:
        """Each other tensor, merged."""
        for name in self.adapters.plain:
            origin = self.adapters.origin(name)
            if self._task is not None:
                yield name, self._own(self._task, name, origin)
            elif name in self.measured.values:
                yield name, self.measured.values[name]
            elif origin is None:
                yield name, self._average(name)
            else:
                yield name, self._combine(name, self._distance(name, origin)) + origin

    def _own(self, index: int, name: str, origin: Array | float | None) -> Floats:
        """What one adapter has, its change scaled where there is a place from which it is one."""
        value = self.adapters.value(index, name)
        return (
            value
            if origin is None or self.recipe.scale == 1
            else origin + self.recipe.scale * (value - origin)
        )

    def _in_core(self, module: str) -> MergedWeight:
        if isinstance(self.recipe.rule, FactorRule):
            b, a = self._merged_factors(self.recipe.rule, module, raw=False)
            b, a, spectrum = truncated(b, a, self.recipe.truncation)
            return MergedWeight(a, b, spectrum)
        basis: Basis | CommonAxes
        if module in self.measured.changes:
            basis, core = self.measured.changes[module]
            core = core * self.recipe.scale
        else:
            basis, core = self._combined_in_core(module)
        b, a, spectrum = basis.factors(core, self.recipe.truncation)
        return MergedWeight(a, b, spectrum)

    def _combined_in_core(self, module: str) -> tuple[Basis | CommonAxes, Floats]:
        rule, part = self.recipe.rule, self.adapters.first.modules[module]
        if isinstance(rule, ValueRule) and rule.alone:
            small = compressed_adapters(rule, self.adapters)
            basis = Basis.of(small, module)
            return basis, _added(self.weights * self.recipe.scale, _factors_in(basis, small, module))
        side = min(part.rows, part.columns)
        by_matrix = isinstance(rule, LinearRule | MatrixRule | SequentialRule | DataRule)
        left = isinstance(rule, ValueRule) and rule.axes == "concatenation"
        if isinstance(rule, LinearRule) or not (by_matrix or left):
            axes = CommonAxes.of(self.adapters, module, turned=not by_matrix)
            if axes is not None:
                return axes, self._combine(module, axes.core, side)
        if by_matrix:
            basis = Basis.of(self.adapters, module)
        else:
            basis = Basis.of_changes(self.adapters, module, columns=not left)
        read = _factors_in(basis, self.adapters, module)
        return basis, self._combine(module, read, side)

    def _stacked(self, module: str) -> MergedWeight:
        coefficients = self._coefficients_of(module)
        pairs = [folder.factors(module) for folder in self.adapters.folders]
        scaled = [c * b for c, (b, _) in zip(coefficients, pairs, strict=True)]
        return MergedWeight(np.concatenate([a for _, a in pairs]), np.concatenate(scaled, axis=1), None)

    def _merged_factors(self, rule: FactorRule, module: str, *, raw: bool) -> tuple[Floats, Floats]:
        b, a = merged_factors(rule, self.adapters, self.weights, module, raw=raw, task=self._task)
        return b * self.recipe.scale, a

    def _factor_by_factor(self, module: str) -> MergedWeight:
        if isinstance(self.recipe.rule, FactorRule):
            b, a = self._merged_factors(self.recipe.rule, module, raw=True)
            return MergedWeight(a, b, None)
        b = self._combine(f"{module} B", self._left(module))
        # the scale belongs to the product: to one of its factors
        a = self._combine(f"{module} A", self._right(module)) / self.recipe.scale
        return MergedWeight(a, b, None)

    def _coefficients_of(self, key: str) -> Floats:
        """The c_i [T] of a weight; of one that a rule by rows has not measured, the weights."""
        found = self._by_weight.get(key, self._coefficients)
        return self.weights * self.recipe.scale if found is None else found

    def _distance(self, name: str, origin: Floats | float) -> Callable[[int], Floats]:
        return lambda i: self.adapters.value(i, name) - origin

    def _average(self, name: str) -> Floats:
        """The weighted mean of what has no place where nothing is changed."""
        shares = self.weights if self._coefficients is None else self._coefficients / self.recipe.scale
        total = float(shares.sum())
        if (shares < 0).any() or total <= 0:
            raise ConfigError(
                f"merge, tensor {name}",
                expected="weights that are positive, or the base's weight, from which adapters are taken out",
                got=f"coefficients {np.array2string(shares, precision=3, threshold=8)}",
                hint="Give --base MODEL if the base has this weight.",
            )
        if name.endswith(MAGNITUDES) and not math.isclose(total * self.recipe.scale, 1.0, rel_tol=1e-9):
            raise ConfigError(
                f"merge, tensor {name}",
                expected="coefficients that sum to one: DoRA's magnitudes are lengths of whole weights, "
                "which can be averaged and not added",
                got=f"a sum of {total * self.recipe.scale:g}",
                hint="Use --rule mean without --scale.",
            )
        if not name.endswith(MAGNITUDES):
            self._note("averaged, since nobody says what it was without adapters", name)
        merged = np.zeros(self.adapters.shape(name))
        for i, share in enumerate(shares / total):
            merged += share * self.adapters.value(i, name)
        return merged

    def _note(self, what: str, name: str) -> None:
        self.notes.append(f"{name}: {what}")

    def _combine(self, key: str, given: Callable[[int], Array], side: int = 0) -> Floats:
        """The rule on one weight: ``given(i)`` is adapter i's change, of one shape for all.

        Args:
            key: names the weight.
            given: see above; float32 or float64.
            side: the smaller side of a weight of which ``given`` are coordinates.
        """
        rule, count = self.recipe.rule, len(self.adapters)

        def read(i: int) -> Floats:
            return given(i).astype(np.float64, copy=False)

        if self._sequence is not None and side:
            return self._sequence.merge(read) * self.recipe.scale
        if isinstance(rule, LinearRule | SequentialRule | DataRule | FactorRule):
            return _added(self._coefficients_of(key), read)
        if isinstance(rule, MatrixRule):
            shape = read(0).shape
            if len(shape) != 2 or (side or min(shape)) == 1:
                if self._task is not None:
                    return read(self._task) * self.recipe.scale
                return _added(self.weights / self.weights.sum() * self.recipe.scale, read)
            stack = np.stack([read(i) for i in range(count)])
            full = side or min(shape)
            if self._task is not None:
                return rule.give_back(stack, self.weights, full, self._task) * self.recipe.scale
            return rule.merge(stack, self.weights, full) * self.recipe.scale
        shape = read(0).shape
        if isinstance(rule, StackRule):
            stack = np.stack([read(i).reshape(-1) for i in range(count)])
            merged = rule.merge(stack, self.weights)
        else:
            assert isinstance(rule, ValueRule)
            merged = fold(rule, self._pruned(rule, key, given), self.weights)
        return merged.reshape(shape) * self.recipe.scale

    def _pruned(self, rule: ValueRule, key: str, read: Callable[[int], Array]) -> Callable[[int], Array]:
        prunes = (
            type(rule).prune is not ValueRule.prune
        )  # what only trims may do it in float32, to the same bits

        def pruned(i: int) -> Array:
            change = np.array(read(i), np.float64 if prunes else None)  # a copy: rules change it
            if (kept := rule.kept) is not None:
                flat = change.reshape(-1)
                if self._cuts is None:
                    Cut.of(flat, kept).apply(flat)
                else:
                    self._cuts[i].apply(flat, self._places[key])
            return rule.prune(change, lambda: self._draw(i, key)).reshape(-1)

        return pruned

    def _draw(self, index: int, key: str) -> np.random.Generator:
        """An adapter's own numbers for a weight: what stands beside it changes none of them."""
        text = f"{self.recipe.seed} {self.adapters.folders[index].digest} {key}".encode()
        return np.random.Generator(np.random.Philox(key=int(hashlib.sha256(text).hexdigest()[:32], 16)))

    def _cuts_of_adapters(self) -> list[Cut] | None:
        """What a rule that trims keeps of each adapter as a whole, in the space ``factors``."""
        rule = self.recipe.rule
        if not isinstance(rule, ValueRule) or (kept := rule.kept) is None:
            return None
        size, changes = 0, list(self._changes())
        for key, read in changes:
            self._places[key] = size
            size += read(0).size
        gate.GATE.expect((SAVED + rule.saved) * size * len(self.adapters))
        room: Array = np.empty(size, np.float32)
        cuts = []
        for i in range(len(self.adapters)):
            for key, read in changes:
                values, at = read(i).reshape(-1), self._places[key]
                if values.dtype != room.dtype:
                    room = room.astype(np.float64, copy=False)
                room[at : at + values.size] = values
            cuts.append(Cut.of(room, kept))
        return cuts

    def _changes(self) -> Iterator[tuple[str, Callable[[int], Array]]]:
        """Everything that is merged value by value in the space ``factors``."""
        for module in self.adapters.modules:
            yield f"{module} B", self._left(module)
            yield f"{module} A", self._right(module)
        for name in self.adapters.plain:
            if (origin := self.adapters.origin(name)) is not None:
                yield name, self._distance(name, origin)

    def _left(self, module: str) -> Callable[[int], Array]:
        return lambda i: self.adapters.folders[i].left(module)

    def _right(self, module: str) -> Callable[[int], Array]:
        return lambda i: self.adapters.folders[i].right(module)


def _factors_in(basis: Basis, adapters: Adapters, module: str) -> Callable[[int], Floats]:
    return lambda i: basis.core(*adapters.folders[i].factors(module))


def _added(coefficients: Floats, read: Callable[[int], Floats]) -> Floats:
    """Σ c_i · read(i)."""
    merged: Floats = coefficients[0] * read(0)
    for i, c in enumerate(coefficients[1:], start=1):
        if c:
            merged += c * read(i)
    return merged
