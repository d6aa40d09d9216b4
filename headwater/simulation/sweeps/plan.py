"""A sweep file: axes over the settings of a federation file. Entry point: :func:`load_sweep`. No torch."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from headwater.config.load import LoadedFederation, federation_of, put, read_tables
from headwater.config.settings import Settings, first_problem, read_toml
from headwater.errors import ConfigError
from headwater.simulation.sweeps.problems import PointProblems

SEED = "federation.seed"
"""The axis over which a combination is repeated."""
MOST_POINTS = 100_000


class SweepMetric(Settings):
    """``[metric]``: what points are compared by."""

    name: str | None = None
    of: Literal["last", "best"] = "last"
    target: float | None = None


class _SweepFile(Settings):
    federation: str = Field(min_length=1)
    axes: dict[str, Any] = Field(min_length=1)
    zip: tuple[tuple[str, ...], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    metric: SweepMetric = SweepMetric()


@dataclass(frozen=True)
class Axis:
    """One setting and what it is set to.

    Args:
        key: dotted, of the federation file.
        labels: of its values, in their order; of zipped axes one may come again.
        levels: by label, the value or whole table.
    """

    key: str
    labels: tuple[str, ...]
    levels: Mapping[str, Any]


@dataclass(frozen=True)
class Factor:
    """Axes that go together: one alone, or those that the file zips.

    Args:
        axes: their keys.
        levels: of each level the labels, one an axis.
    """

    axes: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]

    @property
    def repeats(self) -> bool:
        """Whether its levels repeat one experiment: seeds."""
        return SEED in self.axes


@dataclass(frozen=True)
class Point:
    """One federation of the grid.

    Args:
        labels: by axis, which level.
        loaded: what is run.
    """

    labels: Mapping[str, str]
    loaded: LoadedFederation

    @property
    def name(self) -> str:
        """``alpha = 0.1, seed = 1``."""
        names = short_names(list(self.labels))
        return ", ".join(f"{names[key]} = {label}" for key, label in self.labels.items())

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits of its effective settings: what changes nothing of them changes nothing here."""
        return self.loaded.run_id()[:16]


@dataclass(frozen=True)
class Sweep:
    """A grid, checked as far as files of settings go.

    Args:
        path: the sweep file.
        source: its bytes.
        factors: in the file's order.
        points: in grid order, the first factor slowest.
        metric: the deciding metric's name.
        compared: ``[metric]``.
    """

    path: Path
    source: bytes
    factors: tuple[Factor, ...]
    points: tuple[Point, ...]
    metric: str
    compared: SweepMetric

    @property
    def name(self) -> str:
        """The federation's."""
        return self.points[0].loaded.settings.federation.name


def load_sweep(path: Path, overrides: Iterable[str] = ()) -> Sweep:
    """Read a sweep file and check every point of it.

    Args:
        path: the TOML file.
        overrides: ``table.key=value`` strings, for every point.

    Raises:
        ConfigError: names the file and the key, or all points that are no federation.
    """
    raw, source = read_toml(path, "sweep", "Check the path.")
    who = f"sweep file {path}"
    try:
        file = _SweepFile.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise first_problem(
            error, who, "A sweep file has federation, [axes], zip, exclude, [metric]."
        ) from None
    overrides = list(overrides)
    axes = {key: _axis(who, key, values) for key, values in _lists(who, "axes", file.axes).items()}
    _require_free(axes, overrides)
    _require_tables_first(who, axes)
    factors = _factors(who, axes, file.zip)
    excluded = [_rule(who, axes, number, rule) for number, rule in enumerate(file.exclude, start=1)]
    chosen = [labels for labels in _combinations(who, factors) if not any(_fits(labels, r) for r in excluded)]
    if not chosen:
        raise ConfigError(who, expected="a point that is not excluded", got="none", hint="Mend exclude.")
    points = _points(who, path.parent / file.federation, axes, chosen, overrides)
    _require_different(who, points)
    return Sweep(path, source, factors, points, _metric(who, points, file.metric), file.metric)


def short_names(keys: list[str]) -> dict[str, str]:
    """Each key's shortest end that no other has: ``alpha`` of ``data.partition.alpha``, ``up.kind``."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = [e for e in ends if sum(k == e or k.endswith(f".{e}") for k in keys) == 1 and e != "kind"]
        found[key] = alone[0] if alone else key
    return found


def _lists(who: str, above: str, table: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of a table of tables by dotted key: TOML makes tables of keys with dots."""
    found: dict[str, list[Any]] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = _lists(who, f"{above}.{key}", value)
            found |= {f"{key}.{name}": values for name, values in inner.items()}
        elif isinstance(value, list) and value:
            found[key] = value
        else:
            hint = 'For example "federation.seed" = [1, 2, 3]'
            raise ConfigError(
                f"{who}: {above}.{key}", expected="a list of values", got=repr(value), hint=hint
            )
    return found


def _axis(who: str, key: str, values: list[Any]) -> Axis:
    labels = tuple(_label(who, key, value) for value in values)
    levels: dict[str, Any] = {}
    for label, value in zip(labels, values, strict=True):
        bare = {k: v for k, v in value.items() if k != "name"} if isinstance(value, dict) else value
        if (known := levels.setdefault(label, bare)) is not bare and known != bare:
            raise ConfigError(
                f"{who}: axes.{key}",
                expected="values whose names differ",
                got=f"two called {label}",
                hint="Give each table a name of its own.",
            )
    return Axis(key, labels, levels)


def _label(who: str, key: str, value: object) -> str:
    if isinstance(value, Mapping):
        name = value.get("name", value.get("kind"))
        if not isinstance(name, str) or not name:
            hint = "The name stands in tables and pictures, and is not part of the settings."
            raise ConfigError(
                f"{who}: axes.{key}",
                expected="a name or a kind in every table",
                got=repr(value)[:80],
                hint=hint,
            )
        return name
    return value if isinstance(value, str) else json.dumps(value)


def _require_free(axes: Mapping[str, Axis], overrides: list[str]) -> None:
    """Refuse an override of what an axis sets: one of the two would be lost."""
    for text in overrides:
        key = text.partition("=")[0].strip()
        for axis in axes:
            if _within(key, axis) or _within(axis, key):
                hint = "Change it in the sweep file."
                raise ConfigError(
                    f"--set {text}", expected="a key that is no axis", got=f"axis {axis}", hint=hint
                )


def _require_tables_first(who: str, axes: Mapping[str, Axis]) -> None:
    """Refuse an axis before that of a table around it, which would undo it."""
    keys = list(axes)
    for at, key in enumerate(keys):
        if table := next((later for later in keys[at + 1 :] if _within(key, later)), None):
            raise ConfigError(
                f"{who}: axes.{key}",
                expected=f"it after {table}, which sets the whole table",
                got=f"it before {table}",
                hint="Points are set in the order of the axes: put the table's first.",
            )


def _within(key: str, table: str) -> bool:
    return key == table or key.startswith(f"{table}.")


def _factors(who: str, axes: Mapping[str, Axis], zipped: tuple[tuple[str, ...], ...]) -> tuple[Factor, ...]:
    """Axes in the file's order; those that are zipped together, where the first of them stands."""
    for key in (key for keys in zipped for key in keys):
        if key not in axes:
            raise ConfigError(f"{who}: zip", expected=f"names of axes: {', '.join(axes)}", got=repr(key))
    together = {key: keys for keys in zipped for key in keys}
    if len(together) < sum(map(len, zipped)):
        raise ConfigError(f"{who}: zip", expected="every axis once", got="one of them twice")
    factors = []
    for keys in dict.fromkeys(together.get(key, (key,)) for key in axes):
        lengths = {key: len(axes[key].labels) for key in keys}
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{length} of {key}" for key, length in lengths.items())
            raise ConfigError(f"{who}: zip", expected="axes with as many values", got=got)
        levels = tuple(zip(*(axes[key].labels for key in keys), strict=True))
        if twice := [level for level, times in Counter(levels).items() if times > 1]:
            got = f"{' + '.join(twice[0])} twice"
            raise ConfigError(f"{who}: axes.{' + '.join(keys)}", expected="values that differ", got=got)
        factors.append(Factor(keys, levels))
    return tuple(factors)


def _combinations(who: str, factors: tuple[Factor, ...]) -> Iterable[dict[str, str]]:
    count = 1
    for factor in factors:
        count *= len(factor.levels)
    if count > MOST_POINTS:
        raise ConfigError(f"{who}: axes", expected=f"at most {MOST_POINTS:,} points", got=f"{count:,}")
    for levels in product(*(factor.levels for factor in factors)):
        pairs = zip(factors, levels, strict=True)
        yield {key: label for f, level in pairs for key, label in zip(f.axes, level, strict=True)}


def _rule(who: str, axes: Mapping[str, Axis], number: int, rule: Mapping[str, Any]) -> dict[str, set[str]]:
    """An entry of ``exclude``: by axis, labels; a point is left out where all of them are its own."""
    who = f"{who}: exclude {number}"
    found = {}
    for key, values in _lists(who, "exclude", _listed(rule)).items():
        if key not in axes:
            raise ConfigError(who, expected=f"names of axes: {', '.join(axes)}", got=repr(key))
        labels = {_label(who, key, value) for value in values}
        if unknown := sorted(labels - axes[key].levels.keys()):
            raise ConfigError(who, expected=f"values of {key}: {', '.join(axes[key].levels)}", got=unknown[0])
        found[key] = labels
    if not found:
        raise ConfigError(who, expected="a value of at least one axis", got="none")
    return found


def _listed(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _listed(value) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
        for key, value in rule.items()
    }


def _fits(labels: Mapping[str, str], rule: Mapping[str, set[str]]) -> bool:
    return all(labels[key] in wanted for key, wanted in rule.items())


def _points(
    who: str, file: Path, axes: Mapping[str, Axis], chosen: list[dict[str, str]], overrides: list[str]
) -> tuple[Point, ...]:
    """Every point's federation.

    Raises:
        ConfigError: all points that are none.
    """
    tables = read_tables(file)
    problems, points = PointProblems(who, len(chosen)), []
    for labels in chosen:
        with problems.of(labels):
            raw = copy.deepcopy(tables)
            for key, label in labels.items():
                put(raw, key, copy.deepcopy(axes[key].levels[label]), who=f"{who}: axes.{key}")
            points.append(Point(labels, federation_of(raw, overrides, folder=file.parent, name=str(file))))
    problems.raise_any()
    return tuple(points)


def _require_different(who: str, points: tuple[Point, ...]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        if (other := seen.setdefault(point.id, point)) is not point:
            raise ConfigError(
                f"{who}: axes",
                expected="points that differ",
                got=f"the same settings at {other.name} and at {point.name}",
                hint="One of the axes changes nothing there: exclude one of the two.",
            )


def _metric(who: str, points: tuple[Point, ...], compared: SweepMetric) -> str:
    """The one metric that all points have: the file's, else the one that decides in all of them."""
    settings = [p.loaded.settings for p in points]
    known = [own.evaluation.metrics_of(own.data) for own in settings]
    if compared.name is not None:
        if lacking := [metrics for metrics in known if compared.name not in metrics]:
            names = ", ".join(lacking[0])
            raise ConfigError(f"{who}: metric.name", expected=f"one of {names}", got=repr(compared.name))
        return compared.name
    deciding = {
        p.loaded.settings.evaluation.metric or next(iter(metrics))
        for p, metrics in zip(points, known, strict=True)
    }
    if len(deciding) > 1:
        raise ConfigError(
            f"{who}: metric.name",
            expected="one metric for all points",
            got=", ".join(sorted(deciding)),
            hint="Say in [metric] by which name points are compared.",
        )
    return deciding.pop()
