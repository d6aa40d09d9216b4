"""Adapters: what is merged, side by side: same kind, same base, same tensors, and a weight each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from headwater.errors import ConfigError, ModelError
from headwater.merging.offline.agreement import require_agreement
from headwater.merging.offline.peft_folder import COPIED, LORA_BIAS, MAGNITUDES, PeftFolder
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.tensor_file import Array, TensorFile

_UNLIKE = 16
"""Adapters of other layouts that an adapter is compared with, to share a table of names."""


@dataclass(frozen=True)
class Adapters:
    """Several adapters, in an order that only their contents decide.

    Args:
        folders: in that order.
        weights: [T], by folder.
        base: reads a weight of the base model by its name in there; None where no base is given.
        named: the folders as they were named, for messages and for what the result takes from the first.
    """

    folders: Sequence[PeftFolder]
    weights: Floats
    base: Callable[[str], Array | None] | None
    named: Sequence[PeftFolder]

    @staticmethod
    def open(
        paths: Sequence[Path],
        weights: Sequence[float] | None,
        *,
        base: Callable[[str], Array | None] | None = None,
        open_adapter: Callable[[Path], PeftFolder] = PeftFolder.open,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Adapters:
        """Open the folders and compare them.

        Args:
            paths: of adapters; one and the same may not come twice.
            weights: by path, finite, not zero; all one if None.
            base: see the class.
            open_adapter: opens each path; by default, folders of PEFT.
            progress: is told what is done, for long merges.

        Raises:
            ConfigError: no folder, a folder twice, weights that do not fit.
            ModelError: adapters that cannot be merged with each other.
            DecodeError, StorageError: as :meth:`PeftFolder.open`.
        """
        if not paths:
            raise ConfigError("merge", expected="folders of adapters", got="none")
        numbers = [1.0] * len(paths) if weights is None else list(weights)
        if len(numbers) != len(paths):
            raise ConfigError(
                "--weights",
                expected=f"one number for each of {len(paths)} adapters",
                got=f"{len(numbers)}",
                hint="Weights stand in the order of the folders, with commas between them.",
            )
        for path, number in zip(paths, numbers, strict=True):
            if not math.isfinite(number) or number == 0:
                raise ConfigError(
                    f"--weights, of {path}",
                    expected="a number that is not zero",
                    got=repr(number),
                    hint="Leave out the adapter that should not count.",
                )
        if not math.isfinite(sum(map(abs, numbers))):
            raise ConfigError("--weights", expected="numbers with a finite sum", got="ones beyond it")
        named: list[PeftFolder] = []
        unlike: list[PeftFolder] = []
        for index, path in enumerate(paths):
            progress(f"opening {index + 1} of {len(paths)}")
            named.append(_sharing(open_adapter(path), unlike))
        require_agreement(named)
        order = sorted(range(len(named)), key=lambda i: (named[i].digest, numbers[i]))
        return Adapters([named[i] for i in order], np.array([numbers[i] for i in order]), base, named)

    def __len__(self) -> int:
        return len(self.folders)

    @property
    def first(self) -> PeftFolder:
        """The first that was named."""
        return self.named[0]

    @property
    def modules(self) -> list[str]:
        """The LoRA modules, sorted."""
        return sorted(self.first.modules)

    @cached_property
    def plain(self) -> list[str]:
        """The names of the other tensors that are merged, sorted."""
        return sorted(name for name in self.first.plain if not name.endswith(COPIED))

    @cached_property
    def copied(self) -> list[str]:
        """The names of those that are the base's."""
        return sorted(name for name in self.first.plain if name.endswith(COPIED))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a plain tensor."""
        return self.first.plain[name]

    def origin(self, name: str) -> Array | float | None:
        """What a plain tensor is where no adapter has changed anything; None where nobody says.

        It is 1 for IA3, 0 for the bias of a LoRA factor, the base's weight for a weight that was trained as a
        whole. Prompts, prefixes and heads that start fresh have none: the merge averages them.
        """
        if name.endswith(".ia3_l"):
            return 1.0
        if name.endswith(LORA_BIAS):
            return 0.0
        if self.base is None or name.startswith("head.") or name.endswith(MAGNITUDES):
            return None
        own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        weight = self.base(own)
        if weight is not None and weight.shape != self.shape(name):
            raise ModelError(
                f"--base, weight {own}",
                expected=f"{list(self.shape(name))}, as in {self.first.path}",
                got=f"{list(weight.shape)}",
                hint="The adapters are for another base.",
            )
        return weight

    def value(self, index: int, name: str) -> Floats:
        """A plain tensor of one adapter, float64, as it takes part: the bias of a LoRA factor times its s."""
        folder = self.folders[index]
        values = folder.read(name).astype(np.float64)
        if name.endswith(LORA_BIAS):
            values = values * folder.modules[name.removesuffix(LORA_BIAS)].scaling
        return values

    def copy(self, name: str) -> Array:
        """A tensor of the base that was saved with the adapters: of several precisions, the finest.

        Raises:
            ModelError: they do not have the same.
        """
        finest = max(self.named, key=lambda folder: _digits(folder, name))
        values = finest.read(name)
        for folder in self.named:
            if not np.array_equal(_rounded(values, folder.file.tensors[name].dtype), folder.read(name)):
                raise ModelError(
                    f"{folder.path}, tensor {name}",
                    expected=f"the values of {finest.path}, since it is the base's",
                    got="others",
                    hint="The adapters were trained on different bases.",
                )
        return values


def _digits(folder: PeftFolder, name: str) -> int:
    """Binary digits of a stored value."""
    return {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}.get(folder.file.tensors[name].dtype, 0)


def _rounded(values: Array, dtype: str) -> Array:
    """As a file of this type has them once they are read again: to the nearest, ties to even."""
    if dtype == "F16":
        with np.errstate(over="ignore"):  # infinities, which no file that is read has, are then a difference
            return values.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32)
        last = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + last) & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype(np.float32) if dtype == "F32" else values


def _sharing(folder: PeftFolder, unlike: list[PeftFolder]) -> PeftFolder:
    """The folder with the tables of an earlier one where they are equal: of a thousand, one table is kept."""
    for other in unlike:
        alike = folder.modules == other.modules and folder.plain == other.plain
        mine, theirs = folder.file, other.file
        if alike and isinstance(mine, TensorFile) and isinstance(theirs, TensorFile):
            if mine.tensors == theirs.tensors:
                mine.tensors = theirs.tensors
            return dataclasses.replace(
                folder,
                config=other.config if folder.config == other.config else folder.config,
                notes=other.notes if folder.notes == other.notes else folder.notes,
                modules=other.modules,
                plain=other.plain,
            )
    if len(unlike) < _UNLIKE:
        unlike.append(folder)
    return folder
