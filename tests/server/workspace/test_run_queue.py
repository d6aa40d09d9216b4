"""The list of runs."""

from __future__ import annotations

import json

from headwater.client.agent.known_runs import KnownRuns
from headwater.server.workspace.run_queue import RunQueue
from tests.client.agent.devices import profile_request, vector_federation
from tests.support.federation_text import vector_text

FEDERATION = vector_text("our run", rounds=2)


def test_devices_join_a_restored_run_as_another_one(tmp_path):
    (tmp_path / "runs").mkdir()
    book = RunQueue(tmp_path / "runs.json", tmp_path / "runs")
    entry, _ = book.submit(FEDERATION, tmp_path)
    assert entry.wire_run_id == entry.run
    names = {entry.wire_run_id}
    devices = KnownRuns(tmp_path / "device")
    for _ in range(2):
        book.mark_restored()
        entry = RunQueue(tmp_path / "runs.json", tmp_path / "runs").get("")
        joined = devices.join(profile_request(vector_federation(), run=entry.wire_run_id))
        assert joined.run == entry.wire_run_id
        names.add(entry.wire_run_id)
    assert len(names) == 3


def test_the_file_keeps_its_names(tmp_path):
    """A daemon of another version reads the same file: a request to stop is its ``wish``."""
    (tmp_path / "runs").mkdir()
    book = RunQueue(tmp_path / "runs.json", tmp_path / "runs")
    entry, _ = book.submit(FEDERATION, tmp_path)
    book.request_stop(entry.run, "pause")
    (row,) = json.loads((tmp_path / "runs.json").read_text())
    assert (row["wish"], "stop_request" in row) == ("pause", False)
    assert RunQueue(tmp_path / "runs.json", tmp_path / "runs").get("").stop_request == "pause"
