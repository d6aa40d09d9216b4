"""open_adapter(): an adapter from a folder of PEFT, or from a compressed file, which stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from headwater.errors import ConfigError, ModelError, StorageError
from headwater.experts.fields import whole_notes
from headwater.experts.layout import FACTORS, HINT, NUMBERS, Layout, Part
from headwater.experts.parts import ONE, ORIGIN, number_type, read_factors, read_numbers, read_ternary
from headwater.experts.ternary_factors import TernaryFactors
from headwater.merging.offline.merged_config import merged_config
from headwater.merging.offline.peft_config import LORA
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.tensor_file import Array, Place

_PREFIX, _HEAD = "base_model.model.", "head."


def opener(origin: Path | None = None) -> Callable[[Path], PeftFolder]:
    """What opens adapters of which some are compressed files.

    Args:
        origin: the adapter that values of such files are added to, where they were compressed with one.
    """
    start = None if origin is None else open_adapter(origin)
    return lambda path: open_adapter(path, start)


def open_adapter(path: Path, origin: PeftFolder | None = None) -> PeftFolder:
    """An adapter: a folder, or a file that :func:`~headwater.experts.compress.compress` wrote.

    Args:
        path: of it.
        origin: what a file's values are added to, if it has an origin.

    Raises:
        ConfigError: the file has an origin, and none is given.
        ModelError: it has another; or as :meth:`PeftFolder.open`.
        DecodeError, StorageError: as :class:`~headwater.experts.layout.Layout` and :meth:`PeftFolder.open`.
    """
    try:
        file = path.is_file()
    except OSError as error:
        raise StorageError(
            f"{path}"[:200], expected="the place of an adapter", got=error.strerror or str(error)
        ) from error
    if not file:
        return PeftFolder.open(path)
    layout = Layout(path)
    if layout.header.origin:
        _require_origin(layout, origin)
    own = ExpertTensors(layout, origin, head=False)
    head = ExpertTensors(layout, origin, head=True) if layout.header.head else None
    config = dict(layout.header.config)
    factors = {
        part.name.removeprefix(_PREFIX): part.shape[0]
        for part in layout.parts.values()
        if part.coding == FACTORS
    }
    if factors and config["peft_type"] != LORA[0]:
        raise ModelError(f"{path}", expected="factors in LoRA only", got=config["peft_type"], hint=HINT)
    notes = whole_notes(layout.header.notes)
    return PeftFolder.of(path, merged_config(config, factors), notes, own, head)


def _require_origin(layout: Layout, origin: PeftFolder | None) -> None:
    if origin is None:
        raise ConfigError(
            f"{layout.path}",
            expected="the adapter that it was compressed against",
            got="none",
            hint="Give it with --origin.",
        )
    if origin.digest != layout.header.origin.hex():
        raise ModelError(
            f"--origin {origin.path}",
            expected=f"the adapter that {layout.path} was compressed against",
            got="other values",
            hint=f"Its digest begins with {layout.header.origin.hex()[:12]}.",
        )


class ExpertTensors:
    """The tensors of a compressed file, decoded when they are read; nothing is unpacked to disk.

    Args:
        layout: of the file.
        origin: of its values.
        head: whether these are the head's tensors or the adapter's.

    Raises:
        DecodeError: two parts are of one tensor.
    """

    def __init__(self, layout: Layout, origin: PeftFolder | None, *, head: bool) -> None:
        self.path, self._layout, self._origin = layout.path, layout, origin
        self._parts: dict[str, Part] = {}
        self._last: tuple[str, TernaryFactors] | None = None
        places: dict[str, Place] = {}
        for part in layout.parts.values():
            if (layout.header.head and part.name.startswith(_HEAD)) != head:
                continue
            for name, shape in _tensors(part).items():
                if name in places:
                    raise ModelError(
                        f"{self.path}, tensor {name}", expected="it once", got="twice", hint=HINT
                    )
                dtype = number_type(part).name if part.coding == NUMBERS else "F32"
                short = name.removeprefix(_HEAD) if head else name
                places[short], self._parts[short] = Place(dtype, shape, 0, 0), part
        self.tensors: Mapping[str, Place] = dict(sorted(places.items()))

    def read(self, name: str) -> Array:
        """The values: float64 where the file has float64, else float32.

        Raises:
            DecodeError: its bytes are not what :func:`~headwater.experts.compress.compress` writes.
            ModelError: the origin has no such tensor.
        """
        part = self._parts[name]
        if part.coding == NUMBERS:
            return read_numbers(self._layout.body(part.name), part)
        if part.coding == FACTORS:
            return self._factor(part, name)
        distance = read_ternary(self._layout.body(part.name), part)
        if part.variant == ORIGIN:
            return self._from_origin(part, distance)
        return distance + np.float32(1.0) if part.variant == ONE else distance

    def _factor(self, part: Part, name: str) -> Array:
        last, self._last = self._last, None
        if last is None or last[0] != part.name:
            last = part.name, read_factors(self._layout.body(part.name), part)
        found = last[1]
        shapes = _tensors(part)
        if name == next(iter(shapes)):
            self._last = last  # B is asked for next; after it nothing stays, however many files are open
            return (found.a * found.magnitudes[:, None]).reshape(shapes[name])
        return (found.b * found.magnitudes).reshape(shapes[name])

    def _from_origin(self, part: Part, distance: Array) -> Array:
        origin = self._origin
        head = {} if origin is None or origin.head is None else origin.head.tensors
        known = origin is not None and (
            part.name in origin.file.tensors or part.name.removeprefix(_HEAD) in head
        )
        values = origin.read(part.name) if origin is not None and known else None
        if values is None or values.shape != part.shape:
            raise ModelError(
                f"{self.path}, tensor {part.name}",
                expected=f"one of shape {list(part.shape)} in its origin",
                got="none" if values is None else f"{list(values.shape)}",
                hint=HINT,
            )
        return (values.astype(np.float64) + distance).astype(np.float32)


def _tensors(part: Part) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a part's tensors: of factors A, then B."""
    if part.coding != FACTORS:
        return {part.name: part.shape}
    rank, rows, *inputs = part.shape
    kernel = (1,) * (len(inputs) - 1)
    names = ("lora_embedding_A", "lora_embedding_B") if part.variant else ("lora_A.weight", "lora_B.weight")
    return {
        f"{part.name}.{names[0]}": (rank, *inputs),
        f"{part.name}.{names[1]}": (rows, rank, *kernel),
    }
