"""The handshake of a simulation: whom it waits for, and what a stop before its end says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.client.execution.runtime import ClientRuntime
from headwater.config import load_federation
from headwater.errors import DecodeError, FederationStopped
from headwater.server.clients.handshake import fitting
from headwater.server.events import RunStarted, Waiting
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from tests.support.runs import OWNERS, tiny_federation


@pytest.fixture
def loaded(tmp_path):
    return load_federation(tiny_federation(tmp_path / "fed", federation={"rounds": 1}))


def test_whoever_has_not_said_yet_what_it_has_is_waited_for_by_name(loaded, tmp_path):
    told = []
    simulate(
        loaded, RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"}), observer=told.append
    )
    before = told[: next(i for i, event in enumerate(told) if isinstance(event, RunStarted))]
    waits = [event for event in before if isinstance(event, Waiting)]
    assert waits[0] == Waiting(0, len(OWNERS), tuple(OWNERS))
    assert waits[-1] == Waiting(len(OWNERS), len(OWNERS))


def test_a_stop_before_the_clients_have_answered_blames_none_of_them(loaded, tmp_path):
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    with pytest.raises(
        FederationStopped, match=r"a stop when 0 of \d clients had answered.*--resume"
    ) as found:
        simulate(loaded, folder, should_stop=lambda: True)
    assert "can take part" not in str(found.value)
    simulate(loaded, folder)
    assert (folder.path / "adapter").is_dir()


def test_who_weighs_by_targets_must_say_how_many(tmp_path):
    changes = {"federation": {"rounds": 1}, "strategy": {"kind": "mean", "weighting": "targets"}}
    runtime = ClientRuntime.open(load_federation(tiny_federation(tmp_path / "fed", **changes)))
    profile = runtime.profile("ann")
    assert profile.train_targets == profile.train_examples  # one label a row
    assert fitting(profile, "ann", runtime.context, runtime.run) == profile
    older = replace(profile, train_targets=0)
    with pytest.raises(DecodeError, match="its owner updates headwater"):
        fitting(older, "ann", runtime.context, runtime.run)
    assert fitting(replace(older, train_examples=0), "ann", runtime.context, runtime.run)
