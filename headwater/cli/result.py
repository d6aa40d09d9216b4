"""The table at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headwater.text import human_joules, human_seconds


def result_table(summary: Mapping[str, Any]) -> RenderableType:
    """Baselines beside the federation, on the same held-out examples, and what it cost in bytes.

    Where nothing was measured there is no table.
    """
    metric, table = summary["metric"], Table()
    table.add_column("trained how")
    table.add_column(metric["name"], justify="right")
    baselines = summary["baselines"]
    if "majority" in baselines:
        table.add_row("not at all (majority label)", _number(baselines["majority"]))
    if "probe" in baselines:
        table.add_row("probe on frozen features, all data pooled", _number(baselines["probe"]))
    for client, value in baselines.get("alone", {}).items():
        table.add_row(Text(f"{client} alone"), _number(value))
    if "centralised" in baselines:
        table.add_row("all data in one place", _number(baselines["centralised"]))
    if metric["final"] is not None:
        table.add_section()
        table.add_row("before the first round", _number(metric["start"]))
        table.add_row("federated, last round", _number(metric["final"]))
        table.add_row(
            f"federated, best round ({metric['best_round']})", _number(metric["best"]), style="bold"
        )
    sizes = summary["bytes"]
    cost = (
        f"{summary['clients']} clients, {summary['rounds']} rounds, {summary['seconds']:.0f} s; "
        f"up {sizes['up']:,} bytes (dense: {sizes['up_dense']:,}), "
        f"down {sizes['down']:,} (dense: {sizes['down_dense']:,}); "
        f"{_fisher(summary)}{_simulated(summary)}"
        f"adapter of round {summary['adapter_round']}, sha256 {summary['adapter_sha256'][:16]}…"
    )
    if not table.row_count:
        return Text(cost)
    groups = [_groups_table(summary)] if summary.get("groups") else []
    # a table's own title and caption are no wider than it is
    title = Text(f"{summary['name']}: {metric['name']} on {_where(metric)}", style="italic")
    return Group(title, table, *groups, Text(cost))


def _groups_table(summary: Mapping[str, Any]) -> Table:
    """The groups of test rows, line by line: before, alone on average, all in one place, federated."""
    groups, baselines = summary["groups"], summary["baselines"]
    central, alone = (baselines.get(f"{name}_groups", {}) for name in ("centralised", "alone"))
    table = Table()
    table.add_column("of the test rows")
    heads = ["before", *(["alone, mean"] if alone else []), *(["in one place"] if central else [])]
    for head in (*heads, "federated, last", "best"):
        table.add_column(head, justify="right")
    for group, row in groups.items():
        values = [row["start"]]
        if alone:
            own = [found[group] for found in alone.values() if group in found]
            values.append(math.fsum(own) / len(own) if own else None)
        values += [central.get(group)] if central else []
        table.add_row(Text(group), *map(_number, (*values, row["final"], row["best"])))
    return table


def _fisher(summary: Mapping[str, Any]) -> str:
    if "fisher" not in summary:
        return ""
    cost = summary["fisher"]
    return f"of it {cost['bytes_up']:,} up and {cost['seconds']:.1f} s of the clients for Fishers; "


def _simulated(summary: Mapping[str, Any]) -> str:
    if "simulated" not in summary:
        return ""
    cost = summary["simulated"]
    energy = f", {human_joules(cost['joules'])}" if cost["joules"] else ""
    return f"simulated {human_seconds(cost['seconds'])}{energy}; "


def _where(metric: Mapping[str, Any]) -> str:
    return "the held-out test" if metric["on"] == "test" else "the clients' validation splits"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
