"""describe(): what is in an adapter; and loss(): what a compressed one has lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.compression.ternary import bound_bits
from headwater.experts.compress import tensors
from headwater.experts.layout import FACTORS, NUMBERS, TERNARY, Layout, Part
from headwater.experts.parts import read_factors, read_ternary
from headwater.merging.offline.peft_folder import LORA_BIAS, PeftFolder
from headwater.merging.offline.rule import Floats

IA3 = ".ia3_l"
CODINGS: Mapping[int, str] = {FACTORS: "ternary factors", TERNARY: "ternary", NUMBERS: "numbers"}


@dataclass(frozen=True)
class Ternary:
    """The ternary parts of a file.

    Args:
        values: how many.
        kept: how many of them are not zero.
        bytes: what they take.
        bound: what they would take at the entropy of positions and signs, part by part, without scales.
    """

    values: int
    kept: int
    bytes: int
    bound: float


@dataclass(frozen=True)
class Description:
    """What is in an adapter.

    Args:
        path: of it.
        kind: PEFT's ``peft_type``.
        base: the name of its base.
        digest: SHA-256 of its values, by which merges order it; of a file, also its checksum's.
        bytes: of the file, or of the folder's tensors.
        values: how many numbers it has.
        modules: of LoRA: rank, shape of the weight, and ‖s·B·A‖.
        tensors: the others: shape and norm.
        codings: of a file: bytes by coding.
        ternary: of a file with such parts.
        origin: the digest of what a file's values are added to; empty without.
    """

    path: str
    kind: str
    base: str
    digest: str
    bytes: int
    values: int
    modules: Mapping[str, tuple[int, tuple[int, int], float]]
    tensors: Mapping[str, tuple[tuple[int, ...], float]]
    codings: Mapping[str, int]
    ternary: Ternary | None
    origin: str


def describe(adapter: PeftFolder) -> Description:
    """Read all of an adapter.

    Raises:
        DecodeError: a value that is not what it should be.
    """
    layout = Layout(adapter.path) if adapter.path.is_file() else None
    files = [adapter.file.path] + ([] if adapter.head is None else [adapter.head.path])
    return Description(
        path=str(adapter.path),
        kind=adapter.kind,
        base=adapter.base,
        digest=adapter.digest,
        bytes=sum(path.stat().st_size for path in set(files)),
        values=sum(int(np.prod(shape)) for shape in tensors(adapter).values()),
        modules={
            name: (part.rank, (part.rows, part.columns), float(np.sqrt(product(adapter, adapter, name))))
            for name, part in adapter.modules.items()
        },
        tensors={
            name: (shape, float(np.linalg.norm(adapter.read(name)))) for name, shape in adapter.plain.items()
        },
        codings={} if layout is None else _codings(layout),
        ternary=None if layout is None else _ternary(layout),
        origin="" if layout is None else layout.header.origin.hex(),
    )


def loss(before: PeftFolder, after: PeftFolder) -> float:
    """‖Δ − Δ'‖ / ‖Δ‖ over what an adapter adds: the products of LoRA, IA3's distance from 1, a factor's bias.

    Of an adapter that adds nothing of the kind, such as a prompt, over all its values.
    """
    error, norm = 0.0, 0.0
    for name in before.modules:
        own = product(before, before, name)
        norm += own
        if all(map(np.array_equal, before.factors(name), after.factors(name))):
            continue  # the sum below would be rounding
        error += max(0.0, own + product(after, after, name) - 2 * product(before, after, name))
    added = [name for name in before.plain if name.endswith((IA3, LORA_BIAS))]
    for name in added if added or before.modules else before.plain:
        nothing = 1.0 if name.endswith(IA3) else 0.0
        mine, its = _added(before, name), _added(after, name)
        error += float(np.square(mine - its).sum())
        norm += float(np.square(mine - nothing).sum())
    return float(np.sqrt(error / norm)) if norm else 0.0


def _added(adapter: PeftFolder, name: str) -> Floats:
    values = adapter.read(name).astype(np.float64)
    return (
        values * adapter.modules[name.removesuffix(LORA_BIAS)].scaling if name.endswith(LORA_BIAS) else values
    )


def product(one: PeftFolder, other: PeftFolder, module: str) -> float:
    """⟨s·B·A, s'·B'·A'⟩ of a module of two adapters."""
    b, a = one.factors(module)
    b2, a2 = (b, a) if other is one else other.factors(module)
    return max(0.0, _trace(b.T @ b2, a @ a2.T)) if other is one else _trace(b.T @ b2, a @ a2.T)


def _trace(left: Floats, right: Floats) -> float:
    return float((left * right).sum())


def _codings(layout: Layout) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in layout.parts.values():
        coding = CODINGS[part.coding]
        found[coding] = found.get(coding, 0) + layout.bytes_of(part.name)
    return found


def _ternary(layout: Layout) -> Ternary | None:
    parts = [part for part in layout.parts.values() if part.coding != NUMBERS]
    if not parts:
        return None
    counts = [count for part in parts for count in _counts(layout, part)]
    return Ternary(
        values=sum(size for size, _ in counts),
        kept=sum(kept for _, kept in counts),
        bytes=sum(layout.bytes_of(part.name) for part in parts),
        bound=sum(bound_bits(size, kept) for size, kept in counts if size) / 8,
    )


def _counts(layout: Layout, part: Part) -> list[tuple[int, int]]:
    """Values and kept values of each vector of a ternary part."""
    body = layout.body(part.name)
    if part.coding == FACTORS:
        found = read_factors(body, part)
        return [(f.size, int(np.count_nonzero(f))) for f in (found.a, found.b)]
    return [(part.values, int(np.count_nonzero(read_ternary(body, part))))]


def folder_bytes(adapter: PeftFolder) -> int:
    """Bytes of all files of an adapter: of a folder, those that PEFT and Headwater read."""
    if adapter.path.is_file():
        return adapter.path.stat().st_size
    return sum(path.stat().st_size for path in _files(adapter.path))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json")]
