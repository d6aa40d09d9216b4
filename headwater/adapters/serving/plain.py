"""PlainLora: LoRA as every runtime reads it: s in B, ranks as asked, the head apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from headwater.adapters.serving.traits import PREFIX, Subject
from headwater.errors import ConfigError
from headwater.merging.offline.peft_folder import COPIED, MAGNITUDES, LoraPart, PeftFolder, module_name
from headwater.merging.offline.tensor_file import Array


@dataclass(frozen=True)
class Factors:
    """One weight's change, B·A.

    Args:
        a: float32 [r, inputs].
        b: float32 [outputs, r], with s in it.
        part: what it was in PEFT's file.
        magnitude: float32 [outputs] of DoRA, or None.
    """

    a: Array
    b: Array
    part: LoraPart
    magnitude: Array | None = None

    @property
    def rank(self) -> int:
        """Its r."""
        return int(self.a.shape[0])

    def padded(self, rank: int) -> Factors:
        """With zeros up to ``rank``: the same product, to the bit."""
        more = rank - self.rank
        a, b = np.pad(self.a, ((0, more), (0, 0))), np.pad(self.b, ((0, 0), (0, more)))
        return Factors(a, b, self.part, self.magnitude)


@dataclass(frozen=True)
class PlainLora:
    """An adapter's changes with s = 1.

    Args:
        weights: by the name of the module, without PEFT's prefix, in order of name.
        head: tensors of a classifier's head, by the names that PEFT has, or those of ``head.safetensors``.
        baked: whether a scale other than 1 is in B.
    """

    weights: Mapping[str, Factors]
    head: Mapping[str, Array] = field(default_factory=dict)
    baked: bool = False

    @staticmethod
    def of(subject: Subject) -> PlainLora:
        """Read all values; an adapter is small."""
        adapter = subject.adapter
        assert adapter is not None, subject.path
        weights = {
            module_name(module): _factors(adapter, module, part) for module, part in adapter.modules.items()
        }
        head = {
            name.removeprefix(PREFIX): adapter.read(name)
            for name in adapter.plain
            if not name.endswith((*MAGNITUDES, COPIED))
        }
        baked = any(part.scaling != 1 or part.e for part in adapter.modules.values())
        return PlainLora(weights, head, baked)

    @property
    def ranks(self) -> list[int]:
        """Those that occur, sorted."""
        return sorted({weight.rank for weight in self.weights.values()})

    def of_rank(self, rank: int) -> PlainLora:
        """All weights at one rank.

        Raises:
            ConfigError: a weight has more.
        """
        if self.ranks[-1] > rank:
            raise ConfigError(
                "--rank",
                expected=f"at least {self.ranks[-1]}, which the adapter has",
                got=str(rank),
                hint="Of a smaller rank: headwater merge ADAPTER --rank N -o DIR.",
            )
        weights = {name: weight.padded(rank) for name, weight in self.weights.items()}
        return PlainLora(weights, self.head, self.baked)


def _factors(adapter: PeftFolder, module: str, part: LoraPart) -> Factors:
    b = adapter.left(module).astype(np.float32)
    a = adapter.right(module).astype(np.float32)
    names = [f"{module}{end}" for end in MAGNITUDES if f"{module}{end}" in adapter.plain]
    return Factors(a, b, part, adapter.read(names[0]).reshape(-1) if names else None)
