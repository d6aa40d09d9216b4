"""An adapter of 300 MB on a link of 1 MB/s: five minutes that are its own client's only."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fleet import Fleet, Trial, eventually, lines
from tests.faults.namespace import Namespace, in_namespace

pytestmark = pytest.mark.faults
VALUES = 75_000_000
BYTES = 4 * VALUES
"""On the wire: TLS and HTTP compress nothing, and after the first version no two MiB are equal."""
LINK_KB_PER_S = 1000
LARGE = f"""
[federation]
name = "large"
rounds = 1000
[model]
kind = "vector"
size = {VALUES}
[data]
kind = "none"
clients = 3
[training]
kind = "noop"
[codec.up]
kind = "compeft"
density = 0.005
error_feedback = false
[cohort]
min_clients = 1
retry_s = 1.0
[schedule]
kind = "buffered"
buffer = 2
max_staleness = 1000
"""


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Fleet]:
    """Three owners without data; not started."""
    fleet = Fleet(tmp_path / "fleet", toml=LARGE)
    yield fleet
    fleet.close()


def seconds(rows: list[dict[str, Any]]) -> float:
    return statistics.median(row["seconds"] for row in rows)


def test_300_mb_at_1_mb_a_second_delay_their_own_client_only(large, namespace: Namespace, note, outcome):
    slow, fast = large.names[2], large.names[:2]
    with in_namespace(large, 2, namespace) as proxy:
        large.network.start_daemon()
        for agent in large.agents[:2]:
            agent.start()
        trial = Trial(large, wait=False)
        trial.reach(3, 420)
        namespace.limit(LINK_KB_PER_S)
        large.agents[2].start()
        eventually(lambda: proxy.down > 2_000_000, 60, "the slow download", 0.1)
        first, begun = trial.round + 2, time.monotonic()
        seen: list[str] = []

        def used() -> list[dict[str, Any]]:
            status = large.status()
            if status is not None:
                seen.extend(c.state for c in status.clients if c.client == slow)
            return [row for row in lines(trial.folder / "rounds.jsonl")[1:] if slow in row["clients"]]

        eventually(used, 420, "the slow client's update", 1.0)
        took = time.monotonic() - begun
        row = used()[0]
        last = row["round"]
        rows = lines(trial.folder / "rounds.jsonl")
        with large.network.control() as control:
            control.stop(trial.run)
        *_, end = large.network.watch(trial.run, 90)
    before, meanwhile = seconds(rows[2:4]), rows[first:last]
    note(
        "300 MB down a link of 1 MB/s for one client, buffered",
        f"{proxy.down / 1e6:.0f} MB in {took:.0f} s; the others made {len(meanwhile)} versions, "
        f"median {seconds(meanwhile):.1f} s, {before:.1f} s before",
    )
    outcome({"said": f"used, {row['clients'][slow]['staleness']} versions old; never called offline"})
    assert proxy.down > BYTES
    assert took > 0.8 * BYTES / (LINK_KB_PER_S * 1000)
    assert set(seen) == {"online"}
    assert all(set(r["clients"]) == set(fast) for r in meanwhile)
    assert len(meanwhile) >= 2
    assert max(r["seconds"] for r in meanwhile) < 0.25 * took
    assert seconds(meanwhile) < 2 * before
    assert row["clients"][slow]["staleness"] >= len(meanwhile)
    assert end.state == "stopped"
