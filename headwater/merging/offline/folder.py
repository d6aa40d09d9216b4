"""merge_folders(): adapters in folders into a folder, which is whole or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.config.origin import base_of_run
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.agreement import remarks
from headwater.merging.offline.fit import require_fit
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.merge import Merge, MergedWeight
from headwater.merging.offline.merged_config import merged_config
from headwater.merging.offline.merged_readme import merged_readme
from headwater.merging.offline.output import place_of, whole_output, write_json
from headwater.merging.offline.peft_config import CONFIG, WEIGHTS
from headwater.merging.offline.peft_folder import HEAD, NOTES, LoraPart, PeftFolder, module_name
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.reversible import merge_of, write_store
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.compressed.rmm import Rmm
from headwater.merging.offline.tensor_file import Array, TensorWriter

RECIPE = "merge.json"
"""What was merged and how, in the folder of the result."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Args:
        folder: of the result.
        adapters: how many were merged.
        rule, space: how.
        weights: of the adapters in the order of their names; for linear rules the coefficients.
        ranks: of each LoRA module.
        kept: the part of the squared norm of the LoRA changes that the result has; 1 where nothing was cut.
        norm: the root of that norm before anything was cut: ‖Δ‖ over all LoRA modules.
        notes: what the user must know, a sentence each.
    """

    folder: Path
    adapters: int
    rule: str
    space: str
    weights: Mapping[str, float]
    ranks: Mapping[str, int]
    kept: float
    norm: float
    notes: tuple[str, ...]


def merge_folders(
    folders: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    weights: Sequence[float] | None = None,
    base: Callable[[str], Array | None] | None = None,
    open_adapter: Callable[[Path], PeftFolder] = PeftFolder.open,
    measure: Callable[[Adapters], Measured] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> MergeReport:
    """Merge adapters that PEFT saved into one that PEFT loads.

    The result depends on the adapters and not on their order. Memory is that of one weight of the base,
    whatever the number of adapters (rules that need all of them say so in ``memory``).

    Args:
        folders: of adapters, each with ``adapter_config.json`` and ``adapter_model.safetensors``.
        out: the folder of the result.
        recipe: how.
        weights: by folder; equal if None.
        base: reads a weight of the base by name, for tensors that were trained as a whole.
        open_adapter: opens each of them; by default, folders of PEFT.
        measure: asks rows, for a rule that goes by them; else None.
        overwrite: whether ``out`` may be there.
        progress: is told what is being done.

    Raises:
        ConfigError: the recipe does not fit the adapters, or ``out`` is there.
        ModelError: adapters that do not belong together.
        DecodeError: a file that is not what it should be.
        StorageError: a file that cannot be read or written.
    """
    adapters = Adapters.open(folders, weights, base=base, open_adapter=open_adapter, progress=progress)
    place = place_of(out, adapters.named, overwrite=overwrite)
    require_fit(recipe.rule, adapters)
    merge = merge_of(adapters, recipe) or Merge(
        adapters, recipe, None if measure is None else measure(adapters)
    )
    with whole_output(place) as folder:
        ranks, energy, kept = _write_weights(merge, folder, progress)
        if isinstance(recipe.rule, Rmm) and not recipe.task:
            merge.notes.append(write_store(merge, folder))
        config = merged_config(adapters.first.config, ranks)
        write_json(folder / CONFIG, config)
        notes = [*merge.notes, *remarks(adapters.named)]
        shares = merge.shares
        by_path = {str(f.path): float(s) for f, s in zip(adapters.folders, shares, strict=True)}
        report = MergeReport(
            folder=out,
            adapters=len(adapters),
            rule=recipe.rule.name,
            space=recipe.chosen if adapters.modules else "values",
            weights={str(f.path): by_path[str(f.path)] for f in adapters.named},
            ranks=ranks,
            kept=kept / energy if energy else 1.0,
            norm=float(np.sqrt(energy)),
            notes=tuple(notes),
        )
        write_json(folder / RECIPE, _record(merge, report))
        noted = next((f for f in adapters.named if f.notes), None)
        if noted is not None:
            write_json(folder / NOTES, _headwater_notes(noted, report))
        text = merged_readme(config, report.rule, report.weights, notes, predict=noted is not None)
        for name, content in {"README.md": text, **merge.measured.files}.items():
            (folder / name).write_text(content, encoding="utf-8")
    return report


def _write_weights(
    merge: Merge, folder: Path, progress: Callable[[str], None]
) -> tuple[dict[str, int], float, float]:
    """The tensors; the rank of each module, and the squared norms before and after a truncation."""
    adapters, ranks, energy, kept = merge.adapters, {}, 0.0, 0.0
    head: dict[str, Array] = {}
    experts: list[tuple[Floats, Floats]] = []
    total = len(adapters.modules)
    with TensorWriter(folder / WEIGHTS) as file:
        for index, (module, weight) in enumerate(merge.modules()):
            progress(f"merged {index + 1} of {total} modules")
            part = adapters.first.modules[module]
            a, b = _padded(weight, merge.one_rank)
            ranks[module_name(module)] = a.shape[0]
            experts.append((a, b))
            if len(experts) == part.experts:
                for name, values in _tensors(part, experts):
                    file.add(name, values)
                experts = []
            if weight.spectrum is not None:
                energy, kept = energy + weight.spectrum.energy, kept + weight.spectrum.kept
        for name, values in merge.plain():
            if adapters.first.head is not None and name.startswith("head."):
                head[name.removeprefix("head.")] = values
            else:
                file.add(name, values)
        for name in adapters.copied:
            file.add(name, adapters.copy(name))
    if head:
        with TensorWriter(folder / HEAD) as file:
            for name, values in head.items():
                file.add(name, values)
    return ranks, energy, kept


def _padded(weight: MergedWeight, rank: int | None) -> tuple[Floats, Floats]:
    """A and B with zeros up to a rank that all modules have, if they must."""
    a, b = weight.a, weight.b
    missing = 0 if rank is None else rank - a.shape[0]
    if not missing:
        return a, b
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))


def _tensors(part: LoraPart, experts: Sequence[tuple[Floats, Floats]]) -> Iterator[tuple[str, Array]]:
    """The factors of a module, or of all experts of one, under PEFT's names: AdaLoRA's become LoRA's."""
    suffix = "" if part.embedding else ".weight"
    a, b = part.a.removesuffix(".weight"), part.b.removesuffix(".weight")
    all_a, all_b = experts[0]
    if part.experts > 1:
        all_a = np.concatenate([a for a, _ in experts])
        all_b = np.stack([b for _, b in experts], axis=2)
    yield a + suffix, all_a.reshape(len(all_a), *part.shape_a[1:])
    yield b + suffix, all_b.reshape(part.rows, len(all_a), *part.shape_b[2:])


def _record(merge: Merge, report: MergeReport) -> dict[str, Any]:
    recipe = merge.recipe
    return {
        "format": "headwater.merge.v1",
        "rule": {"name": recipe.rule.name, **recipe.rule.model_dump(mode="json")},
        "source": recipe.rule.source,
        "space": report.space,
        "rank": recipe.truncation.rank,
        "energy": recipe.truncation.energy,
        "scale": recipe.scale,
        "seed": recipe.seed,
        **({"task": recipe.task} if recipe.task else {}),
        "adapters": [
            {"folder": str(f.path), "digest": f.digest, "weight": report.weights[str(f.path)]}
            for f in merge.adapters.named
        ],
        "kept": report.kept,
        "notes": list(report.notes),
        **({"measured": merge.measured.facts} if merge.measured.facts else {}),
    }


def _headwater_notes(first: PeftFolder, report: MergeReport) -> dict[str, Any]:
    """``headwater.json`` of the result: how rows are read is the first adapter's that says it."""
    notes = {k: v for k, v in first.notes.items() if k not in ("adapter", "adapter_sha256", "spec")}
    card = {"adapters": report.adapters, "rule": report.rule, "space": report.space, "kept": report.kept}
    if isinstance(base := notes.get("base"), dict) and (place := base_of_run(first.path)):
        notes["base"] = base | {"path": place}  # the result lies in no run folder, from where it was found
    return notes | {"card": {"merge": card}}
