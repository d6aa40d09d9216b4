"""Budgets by measured links on a server: after a crash in an open round they are those of its plan."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.flower import count_bytes
from headwater.server.clients.run_control import Interrupted
from headwater.server.events import ClientDone
from headwater.simulation.grid import InProcessGrid
from tests.server.storage import test_durability as deployment

SIZE, SECONDS, LATENCY_S = 50_000, 4.0, 0.5


class Timed(InProcessGrid):
    """Clients whose links carry 250, 400, 500 and 10⁹ bytes/s."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.nodes, self.speeds = {}, {}

    def push_messages(self, messages):
        rows = list(messages)
        ids = list(super().push_messages(rows))
        self.nodes |= {i: m.metadata.dst_node_id for i, m in zip(ids, rows, strict=True)}
        return ids

    def pull_messages(self, message_ids):
        found = list(super().pull_messages(message_ids))
        links = dict(zip(sorted(self.get_node_ids()), (250, 400, 500, 10**9), strict=True))
        for reply in found:
            asked, size = reply.metadata.reply_to_message_id, count_bytes(reply.content)
            self.speeds[asked] = int(size / (LATENCY_S + size / links[self.nodes[asked]]))
        return found

    def bytes_per_s(self, message_id):
        return self.speeds.pop(message_id, None)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "InProcessGrid", Timed)

    def make(name):
        made = deployment.Site(tmp_path, name=name, upload_s=SECONDS)
        sets = [f"model.size={SIZE}", "federation.rounds=4"]
        made.loaded = load_federation(tmp_path / f"{name}.toml", sets)
        made.changes = made.loaded.settings
        return made

    return make


def budgets(record):
    return [row.get("budget_bytes") for _, row in sorted(record["clients"].items())]


def test_budgets_come_from_the_second_round_on_and_settle_where_the_time_is_used_up(site):
    run = site("calm")
    run.go()
    first, second, *_, last = run.records[1:]
    assert budgets(first) == [None] * 4
    assert None not in budgets(second)[:3]
    assert budgets(last)[3] is None  # its link carries the codec's own density
    for row, link in zip(list(last["clients"].values())[1:3], (400, 500), strict=True):
        took = LATENCY_S + row["bytes_up"] / link
        assert 0.5 * SECONDS < took <= SECONDS


def test_a_server_that_dies_in_an_open_round_plans_it_with_the_same_budgets(site):
    calm = site("calm")
    calm.go()
    for moment in (6, 9):  # in rounds 2 and 3
        run, number = site(f"crash{moment}"), (moment - 1) // 4 + 1
        with pytest.raises(Interrupted):
            run.go(crash_at=moment, kinds=ClientDone)
        run.go()
        assert run.states[: number + 1] == calm.states[: number + 1]
        assert [budgets(r) for r in run.records[: number + 1]] == [
            budgets(r) for r in calm.records[: number + 1]
        ]
        assert len(run.records) == 5
