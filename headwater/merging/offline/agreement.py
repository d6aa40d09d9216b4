"""Whether adapters belong together: :func:`require_agreement` refuses, :func:`remarks` says what differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError, ModelError
from headwater.merging.offline.peft_folder import PeftFolder

_OPTIONS = (
    "fan_in_fan_out", "trainable_token_indices", "use_dora", "lora_bias", "feedforward_modules",
    "target_parameters", "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_layers",
    "num_attention_heads",
)  # fmt: skip
"""Of ``adapter_config.json``: what decides where the tensors act, as far as their shapes do not say it."""
_NO_READING = {
    "path", "partition", "test", "name", "batch_size", "test_key", "fraction", "max_examples_per_client",
    "dtype",  # which earlier versions wrote there, and is the base's
}  # fmt: skip
"""Of the notes on rows: which rows there were, and not how one is read."""
_HUB_CACHE = re.compile(r"models--.+?--(?P<name>.+?)/snapshots/[0-9a-f]+")


def require_agreement(folders: Sequence[PeftFolder]) -> None:
    """Refuse adapters that cannot be merged, by name of folder and tensor.

    Raises:
        ConfigError: a folder twice.
        ModelError: adapters of several kinds, for several bases, or with other tensors.
    """
    _require_distinct(folders)
    first = folders[0]
    for folder in folders[1:]:
        _same(folder, first, "kind of adapter", folder.kind, first.kind)
    _require_one_base(folders)
    for option in _OPTIONS:
        for folder in folders[1:]:
            _same(folder, first, option, _of(folder, option), _of(first, option))
    _require_one_task(folders)
    for folder in folders[1:]:
        _require_tensors(folder, first)


def remarks(folders: Sequence[PeftFolder]) -> list[str]:
    """What differs and does no harm, or may; a sentence each."""
    found = []
    if any(not folder.base and not _sha256(folder) for folder in folders) and len(folders) > 1:
        found.append("some adapters do not say which base they are for")
    names = {folder.base: folder for folder in reversed(folders) if folder.base}
    if len(names) > 1 and not all(map(_sha256, folders)):
        found.append(
            "taken for one base, by the last part of its name: " + ", ".join(sorted(map(repr, names)))
        )
    noted = [folder for folder in folders if folder.notes]
    found += [
        f"{folder.path} was trained on rows that were read in another way ({', '.join(differing)}); "
        f"the result reads them as {noted[0].path}"
        for folder in noted[1:]
        if (differing := _differing(_reading(noted[0]), _reading(folder)))
    ]
    dtypes = {_dtype(folder): folder for folder in reversed(noted)}
    if len(dtypes) > 1:
        theirs = " and ".join(sorted(dtypes))
        found.append(f"trained on the base in {theirs}; the result reads it in {_dtype(noted[0])}")
    digests: dict[str, Path] = {}
    for folder in folders:
        other = digests.setdefault(folder.digest, folder.path)
        if other != folder.path:
            found.append(f"{folder.path} and {other} hold the same values: they count twice")
    return found


def _require_distinct(folders: Sequence[PeftFolder]) -> None:
    seen: set[Path] = set()
    for folder in folders:
        place = folder.path.resolve()
        if place in seen:
            raise ConfigError(
                f"{folder.path}",
                expected="each adapter once",
                got="the folder twice",
                hint="To make it count more, give it a larger weight with --weights.",
            )
        seen.add(place)


def _require_one_base(folders: Sequence[PeftFolder]) -> None:
    """By the hash of its weights where Headwater wrote one down, else by name.

    Local names are paths, and one model has many: where the last part is the same, names are taken as equal.
    """
    hashed = next((folder for folder in folders if _sha256(folder)), None)
    named = next((folder for folder in folders if folder.base), None)
    for folder in folders:
        if hashed is not None and _sha256(folder):
            _same(folder, hashed, "sha256 of the base's weights", _sha256(folder), _sha256(hashed))
        if named is None or not folder.base or (_sha256(folder) and _sha256(named)):
            continue
        if _last_part(folder.base) != _last_part(named.base):
            _same(
                folder,
                named,
                "base model",
                folder.base,
                named.base,
                hint="Where the two hold the same weights, write one name into both adapter_config.json.",
            )


def _require_one_task(folders: Sequence[PeftFolder]) -> None:
    """What Headwater's notes say of the head."""
    noted = [folder for folder in folders if folder.notes]
    for folder in noted[1:]:
        for key, what, hint in (
            ("kind", "kind of model", ""),
            ("pooling", "pooling", ""),
            ("labels", "labels of the head", "A head's rows are its labels in their order; retrain one."),
        ):
            if key in folder.notes and key in noted[0].notes:
                _same(folder, noted[0], what, folder.notes[key], noted[0].notes[key], hint=hint)


def _require_tensors(folder: PeftFolder, first: PeftFolder) -> None:
    _same_names(folder, first, "LoRA module", folder.modules, first.modules)
    _same_names(folder, first, "tensor", folder.plain, first.plain)
    for name, part in folder.modules.items():
        other = first.modules[name]
        mine, theirs = [part.rows, part.columns], [other.rows, other.columns]
        _same(folder, first, f"shape of the weight under {name}", mine, theirs)
        _same(folder, first, f"input shape of {name}", list(part.shape_a[1:]), list(other.shape_a[1:]))
    for name, shape in folder.plain.items():
        _same(folder, first, f"shape of tensor {name}", list(shape), list(first.plain[name]))


def _same(
    folder: PeftFolder, first: PeftFolder, what: str, got: object, expected: object, hint: str = ""
) -> None:
    if got != expected:
        raise ModelError(
            f"{folder.path}",
            expected=f"the {what} of {first.path}, {expected!r:.300}",
            got=f"{got!r:.300}",
            hint=hint or "Only adapters of one kind for one base can be merged.",
        )


def _same_names(
    folder: PeftFolder,
    first: PeftFolder,
    what: str,
    got: Mapping[str, object],
    expected: Mapping[str, object],
) -> None:
    odd = sorted(got.keys() ^ expected.keys())
    if odd:
        has, lacks = (folder, first) if odd[0] in got else (first, folder)
        raise ModelError(
            f"{lacks.path}",
            expected=f"the {what}s of {has.path}",
            got=f"no {odd[0]}" + (f" (and {len(odd) - 1} more differences)" if len(odd) > 1 else ""),
            hint="Merge adapters with the same target_modules and modules_to_save.",
        )


def _of(folder: PeftFolder, option: str) -> object:
    """An option; absent, null, false and empty are one. Lists of modules are sets."""
    value: Any = folder.config.get(option) or None
    listed = isinstance(value, list) and option.endswith(("_modules", "_parameters"))
    return sorted(map(str, value)) if listed else value


def _sha256(folder: PeftFolder) -> str | None:
    base = folder.notes.get("base")
    found = base.get("sha256") if isinstance(base, dict) else None
    return found if isinstance(found, str) and found else None


def _last_part(name: str) -> str:
    """A model's name without folder and owner."""
    cached = _HUB_CACHE.search(name)
    return (cached["name"] if cached else name.rstrip("/").rsplit("/", 1)[-1]).lower()


def _reading(folder: PeftFolder) -> Mapping[str, Any]:
    """How rows were read in training: ``max_tokens``, templates, marks."""
    rows = folder.notes.get("rows")
    flat = {key: folder.notes.get(key) for key in ("chat", "system", "ends", "token_types")}
    if isinstance(rows, dict):
        data = rows.get("data")
        flat |= {key: value for key, value in rows.items() if key != "data"}
        flat |= data if isinstance(data, dict) else {}
    return flat


def _dtype(folder: PeftFolder) -> str:
    """In which the base was, by the notes of Headwater."""
    base = folder.notes.get("base")
    return str(base.get("dtype", "float32")) if isinstance(base, dict) else "float32"


def _differing(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The settings of reading that differ."""
    keys = sorted((mine.keys() | other.keys()) - _NO_READING)
    return [key for key in keys if mine.get(key) != other.get(key)]
