"""A run that lasts: interrupted anywhere and begun again, it comes to the same bits and asks nobody twice."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import tomli_w

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import DirectoryStore
from headwater.config import load_federation
from headwater.protocol.messages import TrainRequest
from headwater.server.clients.client_pool import FixedClients
from headwater.server.clients.exchange import Exchange
from headwater.server.clients.handshake import collect_profiles
from headwater.server.clients.run_control import Interrupted, RunControl
from headwater.server.events import ClientDone, RoundEnded, Waiting
from headwater.server.rounds.base import Rounds
from headwater.server.rounds.evaluation import EvaluationRound
from headwater.server.rounds.evaluation_wait import EvaluationAborted
from headwater.server.rounds.federation_server import FederationServer
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.durability import Durability, OpenRoundRecord
from headwater.server.storage.run_folder import RunFolder
from headwater.server.storage.update_spool import Spool
from headwater.simulation.grid import InProcessGrid
from headwater.training.context import TrainingContext

CLIENTS, ROUNDS = 4, 3


class Site:
    """A server's and the clients' files; every ``go`` is a new process's life."""

    def __init__(self, folder, *, schedule=None, strategy=None, name="run", **cohort):
        content = {
            "federation": {"name": "lasting", "rounds": ROUNDS, "seed": 3},
            "model": {"kind": "vector", "size": 500},
            "data": {"kind": "none", "clients": CLIENTS, "examples": 5},
            "training": {"kind": "noop", "scale": 0.01},
            "codec": {"up": {"kind": "compeft", "density": 0.1}},
            "cohort": {"min_clients": CLIENTS, **cohort},
            "evaluation": {"every": 0},
        }
        if schedule:
            content["schedule"] = schedule
        if strategy:
            content["strategy"] = strategy
        file = folder / f"{name}.toml"
        file.write_text(tomli_w.dumps(content))
        self.loaded = load_federation(file)
        self.folder = RunFolder.create(folder / name, self.loaded, {"engine": "test"})
        self.asked: Counter[tuple[str, int]] = Counter()
        self.changes = self.loaded.settings
        self.rollback, self.leaving = None, ""

    def go(self, crash_at=None, kinds=object, tell=lambda event: None):
        """Serve until the end, or until the ``crash_at``-th event of these kinds."""
        seen = []
        dead = []

        def observe(event):
            tell(event)
            if isinstance(event, kinds):
                seen.append(event)
                if crash_at is not None and len(seen) >= crash_at:
                    dead.append(event)
                    raise Interrupted

        site = self

        class Counting(Exchange):
            def send(self, requests, round, *plan):
                rows = list(requests)
                for name, request in rows:
                    if isinstance(request, TrainRequest):
                        site.asked[name, request.round] += 1
                return super().send(rows, round, *plan)

        context = TrainingContext.open(self.loaded)
        runtime = ClientRuntime.open(self.loaded, context)
        grid = InProcessGrid(
            runtime.data.clients, runtime, DirectoryStore(self.folder.clients, durable=False)
        )
        state = self.folder.path / "state"

        def rolled_back():
            self.rollback = None

        versions = Versions(self.folder.path / "versions", keep=64)
        server = FederationServer(
            self.loaded,
            runtime.run,
            context,
            self.folder,
            test=None,
            control=RunControl(observe, interrupted=lambda: bool(dead)),
            durability=Durability(
                spool=Spool(state / "spool"),
                versions=versions,
                open_round=state / "open_round.json",
                settings=lambda: self.changes,
                rollback=lambda: self.rollback,
                rolled_back=rolled_back,
                wire_run_id=runtime.run,
                leaving=lambda: self.leaving,
            ),
        )
        profiles, nodes, _ = collect_profiles(
            grid, runtime.run, context, server.control, expected=CLIENTS, min_clients=CLIENTS
        )
        outcome = server.serve(FixedClients(Counting(grid, nodes), profiles))
        self.versions = versions
        return outcome

    @property
    def records(self):
        return [json.loads(line) for line in self.folder.rounds.read_text().splitlines()]

    @property
    def states(self):
        return [record["state_sha256"] for record in self.records]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("calm"))
    site.go()
    return site


def test_interrupted_after_any_event_it_comes_to_the_same_bits(calm, tmp_path):
    """Every event of an undisturbed run is one moment at which the process may die."""
    events = 0
    while True:
        site = Site(tmp_path, name=f"crash{events}")
        try:
            site.go(crash_at=events + 1)
            break
        except Interrupted:
            site.go()
        assert site.states == calm.states, f"after event {events}"
        events += 1
    assert events > ROUNDS * (CLIENTS + 2)


def test_accepted_updates_of_an_open_round_are_not_asked_for_again(tmp_path):
    site = Site(tmp_path)
    with pytest.raises(Interrupted):
        site.go(crash_at=3, kinds=ClientDone)  # two are in the spool for sure, the third as well
    before = dict(site.asked)
    assert set(before.values()) == {1}
    assert len(before) == CLIENTS
    site.go()
    again = [name for (name, round), count in site.asked.items() if round == 1 and count == 2]
    assert len(again) == CLIENTS - 3


def test_it_dies_over_and_over(calm, tmp_path):
    site, lives = Site(tmp_path), 0
    while True:
        lives += 1
        try:
            site.go(crash_at=2, kinds=(ClientDone, RoundEnded))
            break
        except Interrupted:
            continue
    assert site.states == calm.states
    assert lives > ROUNDS


def test_nothing_is_left_of_finished_rounds(calm):
    state = calm.folder.path / "state"
    assert not list((state / "spool").iterdir())
    assert not (state / "open_round.json").exists()
    rows = calm.versions.rows()
    assert [r.round for r in rows] == list(range(ROUNDS + 1))
    assert [r.sha256 for r in rows] == calm.states
    assert [r.parent for r in rows] == [0, 1, 2, 3]
    assert rows[-1].cohort == tuple(f"client-{i:04}" for i in range(CLIENTS))


def test_the_organiser_goes_back_and_on(tmp_path):
    site = Site(tmp_path)
    site.go()
    more = site.loaded.settings.federation.model_copy(update={"rounds": ROUNDS + 1})
    site.changes = site.loaded.settings.model_copy(update={"federation": more})
    site.rollback = 2
    site.go()
    rows = site.versions.rows()
    assert [r.note for r in rows[-2:]] == ["rollback to version 2", f"round {ROUNDS + 1}"]
    assert rows[-2].sha256 == rows[1].sha256
    assert (rows[-2].parent, rows[-1].parent) == (2, rows[-2].version)
    assert len(site.records) == ROUNDS + 2


def test_a_buffer_is_filled_by_the_first_and_merged_once(tmp_path):
    schedule = {"kind": "buffered", "buffer": 2}
    calm = Site(tmp_path, schedule=schedule, name="calm", min_clients=1)
    calm.go()
    for record in calm.records[1:]:
        rows = [row for row in record["clients"].values() if "failed" not in row]
        assert 1 <= len(rows) <= 2
        assert all(row["staleness"] >= 0 for row in rows)
    assert any(row.get("staleness") for r in calm.records for row in r["clients"].values())
    assert len(calm.records) == ROUNDS + 1


def test_a_buffered_run_survives_deaths(tmp_path):
    schedule = {"kind": "buffered", "buffer": 3}
    for moment in range(1, 12):
        site = Site(tmp_path, schedule=schedule, name=f"b{moment}", min_clients=1)
        try:
            site.go(crash_at=moment, kinds=(ClientDone, RoundEnded))
        except Interrupted:
            site.go()
        assert [r["round"] for r in site.records] == list(range(ROUNDS + 1))
        assert not list((site.folder.path / "state" / "spool").iterdir())


def test_the_record_of_another_round_plans_nothing(tmp_path):
    """One that a crash left behind the checkpoint is of a round that is over."""
    path = tmp_path / "open_round.json"
    OpenRoundRecord(3, {}, {}, rounds=9).save(path)
    rounds = SimpleNamespace(_durability=SimpleNamespace(open_round=path))
    assert Rounds._left_open(rounds, 3) == OpenRoundRecord.load(path)
    assert Rounds._left_open(rounds, 4) is None
    assert Rounds._left_open(SimpleNamespace(_durability=None), 3) is None


def test_no_update_of_what_a_rollback_gave_up_is_merged(tmp_path):
    """Three rounds done, two updates of the fourth in the spool: the run goes on from the first version."""
    schedule, spooled = {"kind": "buffered", "buffer": 3}, 0
    for moment in range(8, 12):
        site = Site(tmp_path, schedule=schedule, name=f"r{moment}", min_clients=1)
        more = site.loaded.settings.federation.model_copy(update={"rounds": ROUNDS + 2})
        site.changes = site.loaded.settings.model_copy(update={"federation": more})
        with contextlib.suppress(Interrupted):
            site.go(crash_at=moment, kinds=(ClientDone, RoundEnded))
        done = site.records[-1]["round"]
        spool = Spool(site.folder.path / "state" / "spool")
        given_up = {c for n in spool.rounds() for c, s in spool.started(n).items() if 1 < s <= done}
        spooled += len(given_up)
        site.rollback = 1
        site.go()
        for record in site.records[done + 1 :]:
            for row in record["clients"].values():
                origin = record["round"] - row.get("staleness", 0)
                assert not 1 < origin <= done, (moment, record["round"])
        assert len(site.records) == ROUNDS + 3
    assert spooled


def test_a_round_whose_evaluation_a_stop_cut_short_is_closed_by_the_resume(calm, tmp_path, monkeypatch):
    after = EvaluationRound.after

    def cut_short(self, checkpoint, *rest, **named):
        if checkpoint.server.round == 2:
            raise EvaluationAborted
        return after(self, checkpoint, *rest, **named)

    site = Site(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationRound, "after", cut_short)
        outcome = site.go()
    assert (outcome.reason, outcome.finished, outcome.checkpoint.server.round) == ("stopped", False, 1)
    assert [r["round"] for r in site.records] == [0, 1]
    asked = dict(site.asked)
    site.go()
    assert site.states == calm.states
    assert {n: c for n, c in site.asked.items() if n[1] <= 2} == asked  # nobody trained again


def test_an_update_in_the_spool_whose_base_is_forgotten_is_asked_for_again(tmp_path):
    """A buffered round that is planned anew forgets the older bases; the run must not end of that."""
    schedule, found = {"kind": "buffered", "buffer": 3}, 0
    for moment in range(4, 12):
        site = Site(tmp_path, schedule=schedule, name=f"b{moment}", min_clients=1)
        with contextlib.suppress(Interrupted):
            site.go(crash_at=moment, kinds=(ClientDone, RoundEnded))
        state = site.folder.path / "state"
        spool = Spool(state / "spool")
        if not any(started < n for n in spool.rounds() for started in spool.started(n).values()):
            continue
        found += 1
        (state / "open_round.json").unlink()
        site.go()
        assert [r["round"] for r in site.records] == list(range(ROUNDS + 1))
        assert not list((state / "spool").iterdir())
    assert found


def test_an_update_that_cannot_be_read_back_is_left_out_of_its_version(tmp_path, monkeypatch):
    """The spool is damaged, or the client was enrolled anew with other keys: the version is made without."""
    site = Site(tmp_path, schedule={"kind": "buffered", "buffer": 3}, min_clients=1)
    read, damaged = Spool.read, []

    def fails_once(self, round, client):
        if not damaged:
            damaged.append(client)
            return None
        return read(self, round, client)

    monkeypatch.setattr(Spool, "read", fails_once)
    site.go()
    row = site.records[1]["clients"][damaged[0]]
    assert "failed" in row
    assert "staleness" not in row
    assert site.versions.rows()[1].cohort == tuple(
        c for c, row in sorted(site.records[1]["clients"].items()) if "staleness" in row
    )
    assert len(site.records) == ROUNDS + 1


def test_an_open_round_with_fewer_clients_than_are_wanted_now_is_planned_anew(tmp_path):
    """The organiser raised the minimum while the round was open, and the daemon was started again."""
    site = Site(tmp_path)
    with pytest.raises(Interrupted):
        site.go(crash_at=2, kinds=ClientDone)
    record = site.folder.path / "state" / "open_round.json"
    left = OpenRoundRecord.load(record)
    first = dict(list(left.profiles.items())[:2])
    OpenRoundRecord(left.round, first, left.bases).save(record)  # a round of two of the four
    site.go()
    assert len(site.records) == ROUNDS + 1
    assert [len(r["clients"]) for r in site.records[1:]] == [CLIENTS] * ROUNDS
    assert sum(count == 2 for (_, round), count in site.asked.items() if round == 1) == CLIENTS - 2


def test_clients_that_leave_as_a_round_is_planned_end_no_run(calm, tmp_path, monkeypatch):
    """They were counted a moment before; the round that waits for them is planned when they are back."""
    ready = FixedClients.ready
    for moment in range(1, 10):
        calls = []

        def blinking(self, calls=calls, moment=moment):
            calls.append(None)
            there = ready(self)
            return dict(list(there.items())[:1]) if len(calls) == moment else there

        monkeypatch.setattr(FixedClients, "ready", blinking)
        site = Site(tmp_path, name=f"blink{moment}")
        site.go()
        assert site.states == calm.states


def test_whoever_waits_is_told_each_time_the_count_changes(tmp_path, monkeypatch):
    ready, calls, told = FixedClients.ready, [], []

    def growing(self):
        """One more every other look."""
        calls.append(None)
        return dict(list(ready(self).items())[: (len(calls) - 1) // 2])

    monkeypatch.setattr(FixedClients, "ready", growing)
    monkeypatch.setattr("headwater.server.clients.run_control.POLL_S", 0.0)
    Site(tmp_path).go(tell=told.append)
    waits = [(event.have, event.need) for event in told if isinstance(event, Waiting)]
    assert waits[: CLIENTS + 1] == [(have, CLIENTS) for have in range(CLIENTS + 1)]


def test_a_round_left_open_is_planned_as_it_was(calm, tmp_path):
    """What the organiser changed meanwhile holds from the next round on."""
    site = Site(tmp_path)
    with pytest.raises(Interrupted):
        site.go(crash_at=2, kinds=ClientDone)
    cohort = site.changes.cohort.model_copy(update={"clients_per_round": 2, "min_clients": 1})
    site.changes = site.changes.model_copy(update={"cohort": cohort})
    site.go()
    assert [len(record["clients"]) for record in site.records] == [0, CLIENTS, 2, 2]
    assert site.states[:2] == calm.states[:2]
