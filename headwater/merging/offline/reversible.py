"""The store of rule ``rmm``: what a merge keeps, from which alone each of its adapters can be had back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headwater.errors import ConfigError, DecodeError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.factor_merge import stacked_factors
from headwater.merging.offline.low_rank import truncated
from headwater.merging.offline.merge import Merge, MergedWeight
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.compressed.rmm import Pieces, Rmm
from headwater.merging.offline.tensor_file import TensorFile, TensorWriter

STORE = "reversible.safetensors"
"""The file, in the folder of a merge. Adapters are in the order in which they were named."""


def merge_of(adapters: Adapters, recipe: Recipe) -> GivenBack | None:
    """One of the adapters of which a folder with a store was made; None where none is asked for."""
    if not recipe.task or len(adapters) != 1:
        return None
    path = adapters.first.path / STORE
    return GivenBack(adapters, recipe, path) if path.is_file() else None


def write_store(merge: Merge, folder: Path) -> str:
    """Write what a merge by ``rmm`` keeps; what the reader of the result must know of it."""
    rule, adapters = merge.recipe.rule, merge.adapters
    assert isinstance(rule, Rmm)
    named = [next(i for i, f in enumerate(adapters.folders) if f is one) for one in adapters.named]
    with TensorWriter(folder / STORE) as file:
        for module in adapters.modules:
            raw = merge.recipe.chosen == "factors"
            ups, downs = stacked_factors(adapters, module, raw=raw)
            for side, pieces in zip("BA", rule.pieces(ups, downs, merge.weights), strict=True):
                kept = pieces._replace(coefficients=pieces.coefficients[named])
                for part, values in kept._asdict().items():
                    file.add(f"{module} {side} {part}", values)
        for number, index in enumerate(named):
            for name in adapters.plain:
                file.add(f"{number + 1} {name}", adapters.value(index, name))
    size = (folder / STORE).stat().st_size
    return f"{STORE} gives each of the {len(adapters)} adapters back with --task, from {size:,} bytes"


class GivenBack(Merge):
    """An adapter as the store of a merge has it, in place of the merge of one adapter.

    Raises:
        ConfigError: another rule, a scale, or no adapter of that number.
        DecodeError: a store of another adapter.
    """

    def __init__(self, adapters: Adapters, recipe: Recipe, path: Path) -> None:
        super().__init__(adapters, dataclasses.replace(recipe, task=0))
        self.recipe = recipe
        self._file, self._number = TensorFile(path), recipe.task
        self._count = count = _adapters_in(self._file)
        if not isinstance(recipe.rule, Rmm) or recipe.scale != 1:
            got = f"--rule {recipe.rule.name}, --scale {recipe.scale:g}"
            raise ConfigError(f"{path}", expected="--rule rmm, without --scale", got=got)
        if not 1 <= recipe.task <= count:
            raise ConfigError(
                f"--task {recipe.task}",
                expected=f"a number from 1 to {count}, as in merge.json beside {path}",
                got=f"{recipe.task}",
            )
        self.notes.append(f"adapter {recipe.task} of the {count} that {adapters.first.path} was merged of")

    @property
    def one_rank(self) -> int | None:
        """As of the merge; an adapter may have more directions than the means that lie beside it."""
        if not self.adapters.first.one_rank:
            return None
        return max(len(self._pieces(module, "B").mean[0]) for module in self.adapters.modules)

    def modules(self) -> Iterator[tuple[str, MergedWeight]]:
        """Each LoRA module, from the store."""
        for module in self.adapters.modules:
            part = self.adapters.first.modules[module]
            b, a = (self._pieces(module, side).of(self._number - 1) for side in "BA")
            if b.shape[:1] != (part.rows,) or a.shape != (part.columns, b.shape[1]):
                raise self._other(module)
            b, a, spectrum = truncated(b, a.T, self.recipe.truncation)
            yield module, MergedWeight(a, b, spectrum)

    def plain(self) -> Iterator[tuple[str, Floats]]:
        """Each other tensor, as the adapter had it."""
        for name in self.adapters.plain:
            key = f"{self._number} {name}"
            if key not in self._file.tensors or self._file.tensors[key].shape != self.adapters.shape(name):
                raise self._other(name)
            yield name, self._file.read(key).astype(np.float64)

    def _pieces(self, module: str, side: str) -> Pieces:
        keys = [f"{module} {side} {part}" for part in Pieces._fields]
        if any(key not in self._file.tensors for key in keys):
            raise self._other(module)
        mean, basis, coefficients = (self._file.read(key).astype(np.float64) for key in keys)
        size = mean.shape[:1]
        if not (mean.ndim == 2 and basis.ndim == coefficients.ndim == 3) or (
            (*size, basis.shape[1], *mean.shape[1:]) != basis.shape
            or coefficients.shape != (self._count, *size, basis.shape[1])
        ):
            raise self._other(module)
        return Pieces(mean, basis, coefficients)

    def _other(self, name: str) -> DecodeError:
        return DecodeError(
            f"{self._file.path}, {name}",
            expected="what rule rmm keeps of the adapter beside it",
            got="other tensors or shapes",
            hint="The file is of another merge, or not whole: merge the adapters again.",
        )


def _adapters_in(file: TensorFile) -> int:
    """How many a store has: of LoRA by the first coefficients, else by the numbers before other tensors."""
    for name, place in file.tensors.items():
        if name.endswith(" B coefficients"):
            return place.shape[0] if place.shape else 0
    numbers = [name.partition(" ")[0] for name in file.tensors]
    return max((int(number) for number in numbers if number.isdecimal() and len(number) < 9), default=0)
