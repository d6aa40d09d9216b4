"""``adapter.start``: settings that a file leaves out, as the adapter that it starts from has them. No torch.

:func:`with_settings_of_start` fills ``[adapter]`` before it is checked. Whether adapter and file really agree
is found out when both are loaded: :mod:`headwater.adapters.start`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError

CONFIG, NOTES, RUN_ADAPTER, RUN_FILE, VERSIONS = (
    "adapter_config.json",
    "headwater.json",
    "adapter",
    "federation.toml",
    "versions",
)
_LARGEST = 16 << 20
"""Bytes of a JSON or TOML file."""
_OF_THE_START = ("start", "start_sha256", "start_head")
_EXPORTED_AS_ANOTHER = ("lora-sb", "pissa", "olora", "p-tuning")
"""Kinds whose export PEFT goes on with as another kind: their notes do not say what the folder is."""


def folder_of(path: Path) -> Path:
    """The adapter's folder: ``path``, or the result in it where it is a run folder."""
    inner = path / RUN_ADAPTER
    return inner if not (path / CONFIG).is_file() and (inner / CONFIG).is_file() else path


def run_of_version(path: Path) -> Path | None:
    """The run folder of a version's file; None if it is none."""
    run = path.parent.parent
    return run if path.parent.name == VERSIONS and (run / RUN_FILE).is_file() else None


def with_settings_of_start(table: Mapping[str, Any], folder: Path, who: str) -> dict[str, Any]:
    """``[adapter]`` with what it leaves out and the adapter named by ``start`` says.

    Args:
        table: as it stands in the file.
        folder: where relative paths start.
        who: the file, for messages.

    Raises:
        ConfigError: it leaves out ``kind``, and the adapter does not say what it is.
    """
    start = table.get("start")
    if not isinstance(start, str) or not start:
        return dict(table)
    found = settings_at((folder / Path(start).expanduser()).resolve())
    if found is None:
        if "kind" in table:
            return dict(table)
        raise ConfigError(
            f"{who}: adapter.kind",
            expected=f"this key, or an adapter of a known kind at adapter.start = {start!r}",
            got="neither",
            hint="Say kind, rank and target_modules, or give the folder that PEFT or Headwater wrote.",
        )
    if table.get("kind", found["kind"]) != found["kind"]:
        return dict(table)  # who loads it says what does not fit
    return {**found, **table}


def settings_at(path: Path) -> dict[str, Any] | None:
    """``[adapter]`` of the adapter at ``path``; None where it cannot be told without loading it."""
    run = run_of_version(path)
    if run is not None:
        own: object = _read(run / RUN_FILE, tomllib.loads).get("adapter")
    else:
        place = folder_of(path)
        own = _read(place / NOTES, json.loads).get("adapter")
        if not isinstance(own, dict) or own.get("kind") in _EXPORTED_AS_ANOTHER:
            own = of_peft(_read(place / CONFIG, json.loads))
    if not isinstance(own, dict) or not isinstance(own.get("kind"), str):
        return None
    kept = {key: value for key, value in own.items() if value is not None and key not in _OF_THE_START}
    for key in ("head_bits", "head"):  # they say how a head moves, not what it is
        kept.pop(key, None)
    return kept


def of_peft(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """``[adapter]`` of what PEFT saved, as far as it has these settings; None of other kinds."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _OF_PEFT:
        return None
    name, keys = _OF_PEFT[kind]
    found: dict[str, Any] = {"kind": name}
    for theirs, (ours, read) in keys.items():
        value = read(config.get(theirs))
        if value is not None:
            found[ours] = value
    return found


def read_as(peft_type: str, key: str) -> str:
    """The key of ``[adapter]`` that is read from ``key`` of what PEFT saved, where the file leaves it out.

    Args:
        peft_type: of the folder.
        key: of its ``adapter_config.json``.

    Returns:
        Empty where nothing is read from it.
    """
    name, keys = _OF_PEFT.get(peft_type, ("", {}))
    return "kind" * bool(name) if key == "peft_type" else keys[key][0] if key in keys else ""


def _plain(value: object) -> object:
    return value


def _number(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _table(value: object) -> object:
    """A table; None for an empty one."""
    return value or None


def _names(value: object) -> object:
    """Names of modules; a pattern of them cannot be said in a federation file."""
    if value == "all-linear":
        return ["all-linear"]
    return sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else None


def _layers(value: object) -> object:
    return [value] if isinstance(value, int) else value


_Keys = Mapping[str, tuple[str, Callable[[object], object]]]
_TOKENS: _Keys = {"num_virtual_tokens": ("tokens", _plain)}
_OF_LAYERS: _Keys = {"target_modules": ("target_modules", _names), "layers_to_transform": ("layers", _layers)}
_OF_PEFT: Mapping[str, tuple[str, _Keys]] = {
    "LORA": (
        "lora",
        {
            "r": ("rank", _plain),
            "lora_alpha": ("alpha", _number),
            "use_rslora": ("rslora", _plain),
            "use_dora": ("dora", _plain),
            "lora_dropout": ("dropout", _number),
            "target_parameters": ("target_parameters", _names),
            "rank_pattern": ("rank_pattern", _table),
            "alpha_pattern": ("alpha_pattern", _table),
            "trainable_token_indices": ("trainable_token_indices", _table),
            **_OF_LAYERS,
        },
    ),
    "IA3": (
        "ia3",
        {
            "target_modules": ("target_modules", _names),
            "feedforward_modules": ("feedforward_modules", _names),
        },
    ),
    "VERA": (
        "vera",
        {
            "r": ("rank", _plain),
            "d_initial": ("d_initial", _number),
            "vera_dropout": ("dropout", _number),
            **_OF_LAYERS,
        },
    ),
    "PROMPT_TUNING": ("prompt", _TOKENS),
    "P_TUNING": ("prompt", _TOKENS),  # it saves the prompt, and not the network
    "PREFIX_TUNING": ("prefix", _TOKENS),
}
"""By ``peft_type`` the kind, and by PEFT's key ours and how its value is read."""


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A JSON or TOML file; empty where there is none that can be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        found = parse(content.decode("utf-8")) if len(content) <= _LARGEST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
