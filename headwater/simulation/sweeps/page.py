"""``report.html`` of a sweep: picture and tables on one page that opens offline, as a run's report does."""

from __future__ import annotations

from headwater.config.data import lower_is_better
from headwater.server.report.page import MOST_TOML, template
from headwater.simulation.sweeps import words
from headwater.simulation.sweeps.picture import level_name, name_of, panels
from headwater.simulation.sweeps.run import SweepResult
from headwater.simulation.sweeps.tables import Tables
from headwater.text import count, human_bytes, human_seconds, number, plain, visible

MOST_POINTS = 2000
"""Points that are listed; ``points.csv`` has all."""


def render(result: SweepResult, tables: Tables) -> str:
    """The page's HTML. Labels and errors are hostile text: the template escapes them."""
    sweep = result.sweep
    names = {point.id: point.name for point in sweep.points}
    source = sweep.source.decode("utf-8", "replace")
    return template("sweep.html.jinja").render(
        title=words.title(result),
        name=plain(sweep.name, 120),
        lead=" ".join([_grid(result), words.best(result, tables)]).strip(),
        remarks=words.remarks(result, tables),
        metric=sweep.metric,
        lower=lower_is_better(sweep.metric),
        panels=panels(sweep, tables),
        combinations=words.combinations(result, tables),
        effects=_effects(result, tables),
        points=[
            {
                "name": plain(names[i], 300),
                "folder": o.folder,
                "value": number(o.value),
                "rounds": count(o.rounds),
                "up": human_bytes(o.bytes_up),
                "down": human_bytes(o.bytes_down),
                "seconds": human_seconds(o.seconds),
            }
            for i in (p.id for p in sweep.points)
            if (o := result.outcomes.get(i)) is not None
        ][:MOST_POINTS],
        most_points=MOST_POINTS,
        failed=[(plain(names[i], 300), plain(f"{e.code}: {e}", 600)) for i, e in result.failed.items()],
        toml="\n".join(map(visible, source[:MOST_TOML].splitlines())),
    )


def _grid(result: SweepResult) -> str:
    """``12 points: 2 of kind × 3 of alpha × 2 of seed.``."""
    sweep = result.sweep
    sizes = " × ".join(f"{len(f.levels):,} of {name_of(f, sweep)}" for f in sweep.factors)
    whole = 1
    for factor in sweep.factors:
        whole *= len(factor.levels)
    left = f", {whole - len(sweep.points):,} excluded" if whole > len(sweep.points) else ""
    return f"{len(sweep.points):,} points: {sizes}{left}."


def _effects(result: SweepResult, tables: Tables) -> list[dict[str, object]]:
    """By factor, its levels with the length of their bars in percent."""
    said = iter(words.effects(result, tables).rows)
    means = [e.value.mean for levels in tables.effects.values() for e in levels if e.value.n]
    largest = max((abs(m) for m in means), default=0.0)
    found: list[dict[str, object]] = []
    for factor, levels in tables.effects.items():
        rows = []
        for effect in levels:
            (_, _, value, combinations, difference), _ = next(said)
            length = 100 * abs(effect.value.mean) / largest if effect.value.n and largest else 0.0
            rows.append((level_name(factor, effect.level), f"{length:.2f}", value, combinations, difference))
        found.append({"name": name_of(factor, result.sweep), "rows": rows})
    return found
