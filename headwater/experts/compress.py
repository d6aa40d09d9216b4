"""compress(): an adapter's folder as the bytes of one file.

Three codecs: :class:`Compeft`, which keeps the largest values as signs; :class:`Rounded`, which rounds to
bfloat16; :class:`Exact`, which loses nothing. All are projections: what was decompressed compresses to the
same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.errors import ConfigError, ModelError
from headwater.experts.fields import config_fields, note_fields
from headwater.experts.layout import Header, Part, write
from headwater.experts.numbers import TYPES
from headwater.experts.parts import ONE, ORIGIN, ZERO, factors_part, numbers_part, ternary_part
from headwater.experts.ternary_factors import ternary_factors
from headwater.merging.offline.merged_config import merged_config
from headwater.merging.offline.peft_folder import COPIED, LORA_BIAS, PeftFolder

SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_r")
"""Fields of a config that its factors say, where they are ternary."""


class ExpertCodec(ABC):
    """What an adapter's tensors become."""

    @abstractmethod
    def parts(self, adapter: PeftFolder) -> Iterator[tuple[Part, bytes]]:
        """The parts of a file, in any order."""

    def config(self, adapter: PeftFolder) -> Mapping[str, Any]:
        """The config of what they are."""
        return adapter.config

    @property
    def start(self) -> PeftFolder | None:
        """The adapter that values are added to."""
        return None


class Exact(ExpertCodec):
    """Every value as it is."""

    def parts(self, adapter: PeftFolder) -> Iterator[tuple[Part, bytes]]:
        """Numbers of the types that the folder has."""
        for name in tensors(adapter):
            yield numbers_part(name, adapter.read(name), TYPES[_stored_as(adapter, name)])


class Rounded(ExpertCodec):
    """Every value to 8 bits of precision; those of 16 bits, and the base's own, as they are."""

    def parts(self, adapter: PeftFolder) -> Iterator[tuple[Part, bytes]]:
        """Numbers."""
        for name in tensors(adapter):
            yield rounded(adapter, name)


@dataclass(frozen=True)
class Compeft(ExpertCodec):
    """Sparse ternary (arXiv 2311.13171).

    LoRA without an origin is kept as ternary directions of its product (:mod:`.ternary_factors`), IA3 as its
    distance from one, the bias of a factor as that from zero; what has no place where nothing is changed (a
    head, a prompt) is rounded. With an origin, the adapter that training began with, every tensor is kept as
    its distance from there, and whoever reads the file needs the origin too.

    Args:
        density: of the values that are kept.
        origin: see above.
    """

    density: float = 0.2
    origin: PeftFolder | None = None

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError("--density", expected="a fraction in (0, 1]", got=f"{self.density!r}")

    @property
    def start(self) -> PeftFolder | None:
        """The origin."""
        return self.origin

    def config(self, adapter: PeftFolder) -> Mapping[str, Any]:
        """Without scales where they are in the factors: the file's parts say the ranks."""
        if not self._has_factors(adapter):
            return adapter.config
        config = merged_config(adapter.config, {"": 1})
        return {k: v for k, v in config.items() if k not in SCALES}

    def parts(self, adapter: PeftFolder) -> Iterator[tuple[Part, bytes]]:
        """Ternary parts, and rounded ones."""
        if self.origin is not None:
            yield from self._from_origin(adapter, self.origin)
            return
        if not self._has_factors(adapter):
            yield from (self._plain(adapter, name) for name in tensors(adapter))
            return
        for module, lora in adapter.modules.items():
            found = ternary_factors(*adapter.factors(module), self.density)
            yield factors_part(module, lora.embedding, lora.shape_a[1:], found)
        for name in adapter.plain:
            yield self._plain(adapter, name)

    def _has_factors(self, adapter: PeftFolder) -> bool:
        """Whether LoRA becomes ternary factors: their ranks differ, which PEFT does not take everywhere."""
        return self.origin is None and bool(adapter.modules) and not adapter.one_rank

    def _plain(self, adapter: PeftFolder, name: str) -> tuple[Part, bytes]:
        if name.endswith(".ia3_l"):
            return ternary_part(name, adapter.read(name) - 1.0, ONE, self.density)
        if name.endswith(LORA_BIAS) and self._has_factors(adapter):
            scaling = adapter.modules[name.removesuffix(LORA_BIAS)].scaling
            return ternary_part(name, adapter.read(name) * scaling, ZERO, self.density)
        return rounded(adapter, name)

    def _from_origin(self, adapter: PeftFolder, origin: PeftFolder) -> Iterator[tuple[Part, bytes]]:
        for name, shape in tensors(adapter).items():
            if name.endswith(COPIED):
                yield rounded(adapter, name)
                continue
            if tensors(origin).get(name) != shape:
                raise ModelError(
                    f"{origin.path}, tensor {name}",
                    expected=f"shape {list(shape)}, as in {adapter.path}",
                    got=f"{tensors(origin).get(name, 'no such tensor')}",
                    hint="The origin is the adapter from which training went on.",
                )
            distance = adapter.read(name).astype(np.float64) - origin.read(name)
            yield ternary_part(name, distance, ORIGIN, self.density)


def compress(adapter: PeftFolder, codec: ExpertCodec) -> bytes:
    """The file.

    Args:
        adapter: of any kind that ``headwater merge`` reads.
        codec: how.

    Raises:
        ConfigError: the codec's settings.
        DecodeError: values that are not finite, or no numbers.
        ModelError: a field of its config that this version does not know; an origin that does not fit it.
    """
    who = f"{adapter.path}"
    if adapter.head is not None and any(name.startswith("head.") for name in adapter.file.tensors):
        raise ModelError(who, expected="tensors head.… in one file", got="in both files")
    header = Header(
        config=config_fields(who, codec.config(adapter)),
        notes=note_fields(who, adapter.notes) if adapter.notes else {},
        origin=b"" if codec.start is None else bytes.fromhex(codec.start.digest),
        head=adapter.head is not None,
    )
    return write(header, sorted(codec.parts(adapter), key=lambda part: part[0].name.encode()))


def tensors(adapter: PeftFolder) -> dict[str, tuple[int, ...]]:
    """All tensors of an adapter: their shapes."""
    own = {name: place.shape for name, place in adapter.file.tensors.items()}
    head = {} if adapter.head is None else adapter.head.tensors
    return own | {f"head.{name}": place.shape for name, place in head.items()}


def rounded(adapter: PeftFolder, name: str) -> tuple[Part, bytes]:
    """A tensor rounded to bfloat16, where it is of more bits and in its range, and not the base's own."""
    values, stored = adapter.read(name), _stored_as(adapter, name)
    wide = stored in ("F32", "F64") and not name.endswith(COPIED)
    fits = wide and bool(np.abs(values).max(initial=0.0) < _LARGEST)
    return numbers_part(name, values, TYPES["BF16" if fits else stored])


_LARGEST = 3.38e38
"""What surely rounds to a finite bfloat16."""


def _stored_as(adapter: PeftFolder, name: str) -> str:
    if name in adapter.file.tensors:
        return adapter.file.tensors[name].dtype
    assert adapter.head is not None
    return adapter.head.tensors[name.removeprefix("head.")].dtype
