"""Read a federation file: :func:`load_federation`. No torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from headwater.config.data import Data
from headwater.config.federation import Federation
from headwater.config.plugins import INSTALLED
from headwater.config.settings import Settings, in_words, read_toml
from headwater.config.start import with_settings_of_start
from headwater.config.trackers import Trackers
from headwater.config.traits import TrackerTraits
from headwater.errors import ConfigError

_RESOLVED = "# resolved federation file, sha256 "


@dataclass(frozen=True)
class LoadedFederation:
    """A federation and the folder that its relative paths start from.

    Args:
        settings: all that the run depends on: what it is named by, and what its clients are sent.
        folder: where relative paths start.
        trackers: who is told of its rounds on the server, which changes nothing of them.
        start_file: the run's own copy of what ``adapter.start`` named when it began; None before.
        run: the id of the run that goes on under these settings; empty where they name it.
    """

    settings: Federation
    folder: Path
    trackers: tuple[TrackerTraits, ...] = ()
    start_file: Path | None = None
    run: str = ""

    def path(self, name: str) -> Path:
        """``name`` as a path, relative to the federation file's folder."""
        return (self.folder / Path(name).expanduser()).resolve()

    def start(self) -> Path | None:
        """Where the adapter is that the federation starts from; None where its seed says how it starts."""
        adapter = self.settings.adapter
        if adapter is None or adapter.start is None:
            return None
        return self.start_file or self.path(adapter.start)

    def sha256(self) -> str:
        """SHA-256 (hex) of the resolved settings without the seed, as canonical JSON."""
        content = self.settings.model_dump(mode="json")
        del content["federation"]["seed"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def run_id(self) -> str:
        """What a run of these settings with their seed is named by: 32 hex digits."""
        if self.run:
            return self.run
        return _run_id(self.sha256(), self.settings.federation.seed)

    def to_toml(self) -> str:
        """The resolved settings as TOML, every default spelled out."""
        header = f"{_RESOLVED}{self.sha256()}\n"
        content = self.settings.model_dump(mode="json", exclude_none=True)
        if self.trackers:
            content["trackers"] = [t.model_dump(mode="json", exclude_none=True) for t in self.trackers]
        return header + tomli_w.dumps(content)


def _run_id(sha256: str, seed: int) -> str:
    return hashlib.sha256(f"{sha256}:{seed}".encode()).hexdigest()[:32]


def load_federation(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    seed: int | None = None,
    folder: Path | None = None,
    name: str = "",
    trackers: bool = True,
) -> LoadedFederation:
    """Read, override and check a federation file.

    Args:
        path: the TOML file.
        overrides: ``table.key=value`` strings; the value is TOML, or a bare string.
        seed: replaces ``federation.seed``.
        folder: where relative paths start; the file's own folder if absent.
        name: what errors call the file, if not by its path.
        trackers: read ``[[trackers]]``, too; False for who only looks at a run and may lack their packages.

    Raises:
        ConfigError: names the file, the key, what was expected and what was got.
    """
    raw, content = read_toml(path, "federation", "Check the path.")
    if not trackers:
        raw.pop("trackers", None)
    earlier = content.startswith(_RESOLVED.encode()) and _by_tensor(raw.get("codec"))
    changes = [*overrides]
    loaded = federation_of(raw, changes, seed=seed, folder=folder or path.parent, name=name or str(path))
    if not earlier or changes or seed is not None:
        return loaded
    sha256 = content[len(_RESOLVED) :].split(maxsplit=1)[0].decode()
    return replace(loaded, run=_run_id(sha256, loaded.settings.federation.seed))


def _by_tensor(table: object) -> bool:
    """Densities as they were when resolved files did not say of what: of each tensor. Whether any was so."""
    inner = table.values() if isinstance(table, dict) else table if isinstance(table, list) else ()
    found = sum(_by_tensor(part) for part in inner) > 0  # all of them, not until one is
    if not isinstance(table, dict) or table.get("kind") != "compeft" or "density_over" in table:
        return found
    table["density_over"] = "tensor"
    return True


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a federation file, as they stand there.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    return read_toml(path, "federation", "Check the path.")[0]


def federation_of(
    raw: dict[str, Any],
    overrides: Iterable[str] = (),
    *,
    seed: int | None = None,
    folder: Path,
    name: str,
) -> LoadedFederation:
    """Override and check tables, which change by it; see :func:`load_federation`.

    Raises:
        ConfigError: names the key, what was expected and what was got.
    """
    for text in overrides:
        _override(raw, text)
    if seed is not None:
        _override(raw, f"federation.seed={seed}")
    if isinstance(strategy := raw.get("strategy"), dict):
        strategy.setdefault("kind", "mean")
    if isinstance(adapter := raw.get("adapter"), dict):
        raw["adapter"] = with_settings_of_start(adapter, folder, name)
    observers = {key: raw[key] for key in Trackers.model_fields if key in raw}
    rest = {key: value for key, value in raw.items() if key not in observers}
    try:
        settings = Federation.model_validate_json(json.dumps(rest, default=str))
        trackers = Trackers.model_validate_json(json.dumps(observers, default=str)).trackers
    except ValidationError as error:
        raise _explain(name, raw, error) from None
    _require_filled_in(name, raw)
    return LoadedFederation(settings, folder.resolve(), trackers)


class _DataOnly(Settings):
    data: Data


def load_data(table: dict[str, Any], overrides: Iterable[str] = ()) -> Data:
    """A ``[data]`` table without a federation file.

    Args:
        table: its keys.
        overrides: as in :func:`load_federation`; only ``data.…`` counts.

    Raises:
        ConfigError: a key is wrong.
    """
    raw: dict[str, Any] = {"data": dict(table)}
    for text in overrides:
        _override(raw, text)
    try:
        return _DataOnly.model_validate_json(json.dumps({"data": raw["data"]})).data
    except ValidationError as error:
        raise _explain("--set", raw, error) from None


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one ``a.b=c``."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {text}", expected="table.key=value", hint="For example --set federation.rounds=3"
        )
    try:
        parsed: Any = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    put(raw, key.strip(), parsed, who=f"--set {text}")


def put(raw: dict[str, Any], key: str, value: object, *, who: str) -> None:
    """Set ``a.b`` of a federation file's tables; tables that are not there are made.

    Args:
        raw: the tables, which change by it.
        key: dotted.
        value: a value or a whole table.
        who: says so, for messages.

    Raises:
        ConfigError: a part of the key is no table.
    """
    *above, last = key.split(".")
    table = raw
    for part in above:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(who, expected=f"'{part}' to be a table", got=repr(inner))
        table = inner
    table[last] = value


def _key(raw: Mapping[str, Any], location: tuple[int | str, ...]) -> str:
    """The key as it stands in the file: pydantic's location without the names of union members."""
    parts: list[str] = []
    table: Any = raw
    for part in location:
        if part == INSTALLED or (
            isinstance(table, Mapping) and part not in table and table.get("kind") == part
        ):
            continue
        parts.append(str(part))
        table = _within(table, part)
    return ".".join(parts) or "(file)"


def _within(table: Any, part: int | str) -> Any:  # noqa: ANN401 - whatever stands in the file
    """What a key of a table, or a place in a list, holds; None where there is none."""
    if isinstance(table, Mapping):
        return table.get(part)
    return table[part] if isinstance(table, list) and isinstance(part, int) else None


def _require_filled_in(name: str, raw: Mapping[str, Any]) -> None:
    """Refuse a path that is still the template's: ``<…>``.

    Raises:
        ConfigError: names the key.
    """
    for table, key in (("model", "path"), ("data", "path"), ("data", "test")):
        value = (raw.get(table) or {}).get(key)
        if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
            raise ConfigError(
                f"{name}: {table}.{key}",
                expected=value[1:-1],
                got="the template's place for it",
                hint="Fill it in; relative paths start at the file's folder.",
            )


def _explain(path: str, raw: Mapping[str, Any], error: ValidationError) -> ConfigError:
    """The first problem in full and the number of the others."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = _key(raw, first["loc"])
    got = first.get("input")
    if first["type"] == "extra_forbidden":
        expected, shown = "no such key", repr(got)
        hint = "Check its spelling and table against docs/reference/federation-file.md."
    elif first["type"] == "union_tag_not_found":
        key, expected, shown, hint = f"{key}.kind", "this key", "nothing", "Say which kind this table is."
    elif first["type"] == "unknown_kind":
        context = first["ctx"]
        key, expected, shown = (
            f"{key}.kind",
            first["msg"].removeprefix("Input should be "),
            repr(context["kind"]),
        )
        hint = f"Check its spelling, or install the package that brings it (entry point {context['group']})."
    elif first["type"] == "missing":
        expected, shown, hint = "this key", "nothing", "Add it."
    else:
        (expected, shown), hint = in_words(first), ""
    more = len(problems) - 1
    if more:
        hint = f"{hint} ({more} more problem{'s' if more > 1 else ''} in this file.)".strip()
    return ConfigError(f"{path}: {key}", expected=expected, got=shown, hint=hint)
