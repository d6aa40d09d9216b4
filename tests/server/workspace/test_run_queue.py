"""The list of runs."""

from __future__ import annotations

from headwater.client.agent.known_runs import JoinedRuns
from headwater.server.workspace.run_queue import RunBook
from tests.client.agent.devices import profile_request, vector_federation

FEDERATION = """
[federation]
name = "our run"
rounds = 2
[model]
kind = "vector"
size = 10
[data]
kind = "none"
clients = 2
examples = 3
[training]
kind = "noop"
"""


def test_devices_join_a_restored_run_as_another_one(tmp_path):
    (tmp_path / "runs").mkdir()
    book = RunBook(tmp_path / "runs.json", tmp_path / "runs")
    entry, _ = book.submit(FEDERATION, tmp_path)
    assert entry.known_as == entry.run
    names = {entry.known_as}
    devices = JoinedRuns(tmp_path / "device")
    for _ in range(2):
        book.mark_restored()
        entry = RunBook(tmp_path / "runs.json", tmp_path / "runs").get("")
        joined = devices.join(profile_request(vector_federation(), run=entry.known_as))
        assert joined.run == entry.known_as
        names.add(entry.known_as)
    assert len(names) == 3
