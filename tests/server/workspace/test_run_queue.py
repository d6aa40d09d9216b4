"""The list of runs."""

from __future__ import annotations

import json

import pytest

from headwater.client.agent.known_runs import KnownRuns
from headwater.errors import ConfigError
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


@pytest.mark.parametrize("masks", [True, False])
def test_a_masked_run_keeps_the_number_of_clients_that_it_promised(tmp_path, masks):
    """Up, and back again; no lower: devices go by the file that they were told."""
    (tmp_path / "runs").mkdir()
    book = RunQueue(tmp_path / "runs.json", tmp_path / "runs")
    text = vector_text("our run", cohort="min_clients = 4").replace("clients = 2", "clients = 9")
    entry, _ = book.submit(f"{text}[privacy]\nmasks = {str(masks).lower()}\n", tmp_path)
    for few in ("7", "4"):
        assert book.settings(book.change(entry.run, {"min_clients": few})).cohort.min_clients == int(few)
    if not masks:
        book.change(entry.run, {"min_clients": "3"})
        return
    with pytest.raises(ConfigError, match=r"min_clients: expected at least 4, as the run's file has it"):
        book.change(entry.run, {"min_clients": "3"})
    assert book.settings(book.get(entry.run)).cohort.min_clients == 4
