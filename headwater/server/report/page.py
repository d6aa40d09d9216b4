"""``report.html``: a run on one page that opens offline. Entry point: :func:`write_report`.

The page is one file without scripts and without any address; its content policy forbids both. Charts
are inline SVG in the page's own colours, light and dark. Names and reasons come from clients and are
hostile text: the template escapes everything, and control characters are replaced before.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from headwater import text as report_text
from headwater.files import write_atomically
from headwater.server.report import charts as report_charts
from headwater.server.report import privacy as report_privacy
from headwater.server.report import simulated as report_simulated
from headwater.server.report import tables as report_tables
from headwater.server.report import tally as report_tally
from headwater.server.report.data import Run, read_run, table_at
from headwater.server.storage.run_folder import RunFolder
from headwater.text import (
    NOTHING,
    count,
    finite,
    human_bytes,
    human_seconds,
    name_some,
    number,
    plain,
    signed,
    times,
)

MOST_TOML = 100_000
"""Characters of the federation file that are shown."""

_ENDINGS = {
    "rounds": "all were run",
    "patience": "ended early: no better evaluation came",
    "privacy": "ended before the round that would have overspent the privacy budget",
    "stopped": "stopped on request",
}


def write_report(folder: RunFolder) -> Path:
    """Write ``report.html`` from what is in the run folder.

    Works on any run, finished or not: what the files do not say is left out of the page.

    Args:
        folder: with ``rounds.jsonl``, ``summary.json`` and ``federation.toml``.

    Returns:
        The page's path.

    Raises:
        StorageError: the folder is not writable.
    """
    path = folder.path / "report.html"
    write_atomically(path, render(read_run(folder)).encode("utf-8"))
    return path


def render(run: Run) -> str:
    """The page's HTML."""
    return template("report.html.jinja").render(
        run=run,
        name=plain(run.get("name") or "unnamed federation", 120),
        lead=lead(run),
        tiles=tiles(run),
        facts=facts(run),
        metric_chart=report_charts.metric_chart(run),
        loss_chart=report_charts.loss_chart(run),
        bytes_charts=report_charts.bytes_charts(run),
        gap_charts=report_charts.gap_charts(run),
        gap_is_exact=report_charts.gap_is_exact(run),
        gap_unmeasured=report_charts.gap_unmeasured(run),
        gap_modules=report_tables.gap_modules(run),
        saturated=[str(r.round) for r in run.rounds if finite(r.gap.get("saturated"))],
        legend=[(plain(c, 80), report_charts.colour_of(run, c)) for c in report_tables.legend_clients(run)],
        traffic=report_tables.traffic(run),
        fisher=report_tables.fisher(run),
        simulated=report_simulated if report_simulated.is_simulated(run) else None,
        privacy=report_privacy.privacy(run),
        baselines=report_tables.baselines(run),
        groups=report_tables.groups(run),
        contributions=report_tables.contributions(run),
        clients=report_tables.shown_clients(run),
        methods=len({client.method for client in run.clients} - {""}) > 1,
        weighed=report_tables.weighed_methods(run),
        most_failures=report_tally.MOST_FAILURES,
        toml="\n".join(map(report_text.visible, run.toml[:MOST_TOML].splitlines())),
        toml_cut=len(run.toml) > MOST_TOML,
        text=report_text,
        spreads={s.round: s for s in run.spreads("metric")},
        losses={s.round: s for s in run.spreads("loss")},
    )


@cache
def template(name: str) -> Template:
    """A page, or a part of one, of this room's ``templates``; it escapes everything."""
    return Environment(
        loader=PackageLoader("headwater.server.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def lead(run: Run) -> str:
    """The run in two sentences."""
    clients, rounds = finite(run.get("clients")), finite(run.get("rounds"))
    who = f"{count(clients)} client{'' if clients == 1 else 's'}" if clients is not None else "The clients"
    over = f" in {count(rounds)} round{'' if rounds == 1 else 's'}" if rounds is not None else ""
    start, reached = finite(run.get("metric", "start")), run.exported_value
    where = "the server's test file" if run.source == "test" else "their own validation data"
    if start is None or reached is None:
        first = f"{who} trained one adapter together{over}."
    else:
        gained = reached < start if run.lower_is_better else reached > start
        verb = "took" if gained else "moved"
        first = f"{who} {verb} {run.metric} from {number(start)} to {number(reached)} on {where}{over}."
    up, dense = run.get("bytes", "up"), run.get("bytes", "up_dense")
    if not finite(up):
        return first
    return f"{first} They sent {human_bytes(up)} up, {times(dense, up)} less than dense fp32 updates."


def tiles(run: Run) -> list[tuple[str, str, str, str]]:
    """The headline numbers: label, number, note, and ``good``, ``bad`` or nothing."""
    start, final, best = (finite(run.get("metric", k)) for k in ("start", "final", "best"))
    value, adapter, failures = run.exported_value, run.get("adapter_round"), run.failure_count
    note, mood, spoken = "no evaluation", "", ""
    if value is not None:
        gain = None if start is None else value - start
        note = f"{signed(gain)} since the start ({number(start)})" if gain is not None else ""
        mood = "" if not gain else "good" if (gain < 0) == run.lower_is_better else "bad"
        spoken = f"last round {number(final)}, best {number(best)}"
    failed = f"{failures:,} failed training{'' if failures == 1 else 's'}" if failures else "none ever failed"
    failed += f"; lost: {name_some(run.lost)}" if run.lost else ""
    sent, dense = run.get("bytes", "up"), run.get("bytes", "up_dense")
    less = times(dense, sent)
    upward = f"{human_bytes(sent)} instead of {human_bytes(dense)}"
    downward = f"{human_bytes(run.get('bytes', 'down_dense'))} if dense fp32"
    return [
        (run.metric, number(value), note, mood),
        ("exported adapter", NOTHING if adapter is None else f"round {adapter}", spoken, ""),
        ("bytes up", less if less == NOTHING else f"{less} less", upward, ""),
        ("bytes down", human_bytes(run.get("bytes", "down")), downward, ""),
        ("rounds", count(run.get("rounds")), _ENDINGS.get(str(run.get("stopped")), ""), ""),
        ("clients", count(run.get("clients")), failed, "bad" if failures else ""),
        *_simulated_tiles(run),
        ("time", human_seconds(run.get("seconds")), "rounds and their evaluation", ""),
        ("peak memory", human_bytes(run.get("peak_rss_bytes")), "largest process", ""),
    ]


def _simulated_tiles(run: Run) -> list[tuple[str, str, str, str]]:
    """Simulated time and energy, where devices are simulated."""
    if not report_simulated.is_simulated(run):
        return []
    seconds, joules = report_simulated.totals(run)
    energy = "" if joules == NOTHING else f"{joules} of all clients"
    return [("simulated time", seconds, energy, "")]


def _start(run: Run) -> str | None:
    """The adapter that the run started from, and the run that made it; None where the seed made its start."""
    start = table_at(run.summary, "start")
    if not start:
        return None
    parts = [("adapter", "start_sha256"), ("of federation", "federation"), ("sha256", "federation_sha256")]
    parts += [("round", "round"), ("version", "version")]
    told = [f"{word} {plain(start[key], 80)}" for word, key in parts if start.get(key) is not None]
    return ", ".join([plain(start.get("path"), 80), *told])


def _changes(run: Run) -> str | None:
    """What of its settings was changed while it ran; None where nothing was."""
    changes = run.summary.get("changes")
    found = [c for c in changes if isinstance(c, dict)] if isinstance(changes, list) else []
    told = [
        f"after round {plain(c.get('after_round'))}: "
        + ", ".join(f"{plain(key, 80)} = {plain(value, 80)}" for key, value in table_at(c, "to").items())
        for c in found
    ]
    return "; ".join(told) or None


def _stood_out(run: Run) -> str | None:
    """Whose updates stood out, most often first; None where nobody's did, or nobody looked."""
    found = sorted((c for c in run.clients if c.stood_out), key=lambda c: (-c.stood_out, c.name))
    told = [
        f"{c.name} in {c.stood_out} of {c.rounds} rounds"
        + (f", left out {c.left_out}x" if c.left_out else "")
        for c in found
    ]
    return name_some(told) if told else None


def facts(run: Run) -> list[tuple[str, str]]:
    """What identifies the run, and why this adapter was exported."""
    adapter, best = run.get("adapter_round"), run.get("metric", "best_round")
    if adapter is None:
        why = "no adapter was exported"
    elif best is None:
        why = f"round {adapter}, the last one: no evaluation chose another"
    elif adapter == best:
        lowest = "lowest" if run.lower_is_better else "highest"
        where = "the server's test file" if run.source == "test" else "the clients' validation data"
        why = f"round {adapter}, which had the {lowest} {run.metric} on {where}"
    else:
        why = f"round {adapter} (the best evaluation was that of round {best})"
    rows = [
        ("exported adapter", why),
        ("adapter sha256", run.get("adapter_sha256")),
        ("federation sha256", run.get("federation_sha256")),
        ("seed", run.get("seed")),
        ("engine", run.get("engine")),
        ("started from", _start(run)),
        ("settings changed", _changes(run)),
        ("updates that stood out", _stood_out(run)),
    ]
    return [(key, plain(value)) for key, value in rows if value is not None]
