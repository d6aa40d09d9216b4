"""A server that dies anywhere goes on where it was: run folder, checkpoint, spool and versions together.

A small server does with these four what ``FederationServer`` does, in its order: each reply to the spool,
then into the sum; the round's line, the version, the checkpoint; then prune and drop. A client's reply is
another one each time it is asked, so asking twice and folding twice both show. Laws, at every restart:

* lines, versions and checkpoint tell of the same rounds, with the same values;
* a round's state is the one before plus the replies its line names, each once;
* a reply that was acknowledged is in its round, and its client was not asked again.

The state is dense, or the coefficient of a seed (``SPANNED``), which then is the sum of all replies.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.config import load_federation
from headwater.errors import StorageError
from headwater.merging.plan import NoisePlan
from headwater.seeds.directions import Directions
from headwater.seeds.seeded_state import SeededState
from headwater.server.metrics import Tracker
from headwater.server.round_record import RoundRecord
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from headwater.server.storage.update_spool import Spool
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.strategy import ServerState
from tests.support.crash_points import crash_points
from tests.support.faults import CRASHES, Disk, How

SPEC = StateSpec((TensorSpec("v", (4,), "vector"),))
RUN, CLIENTS = "r" * 32, ("ann", "ben", "cleo")


def state(value):
    return AdapterState.from_vector(SPEC, torch.full((4,), float(value)))


ORIGIN = SeededState(state(0.1), Directions(b"k" * 16, "gaussian", 4), 20, np.zeros(2, np.int64))


def dense(number, total):
    return ServerState(number, state(total))


def spanned(number, total):
    seeded_state = ORIGIN.plus(1, np.array([total, number]))  # grows, as decomfl's does
    return ServerState(
        number, seeded_state.state(), None, NoisePlan(total / 7, {"default": 0.1}), seeded_state
    )


@dataclass
class World:
    """The server's machine and its clients, who never forget."""

    home: Path
    rounds: int
    server: Callable[[int, int], ServerState] = dense
    asked: int = 0
    acknowledged: dict[tuple[int, str], int] = field(default_factory=dict)

    def serve(self):
        """One life of the server: from its files, to the last round or its death."""
        folder = RunFolder(self.home)
        with folder.locked():
            told = []
            spool = Spool(self.home / "spool", notice=told.append)
            versions = Versions(self.home / "versions", keep=2)
            found = Checkpoint.load(folder.checkpoint, SPEC, RUN)
            if found is None:
                folder.keep_rounds(-1)
                versions.keep_through(-1)
                found = self.commit(folder, versions, Checkpoint(RUN, self.server(0, 0), Tracker("x")), {})
            else:
                folder.keep_rounds(found.server.round)
                versions.keep_through(found.server.round, found.server.state.sha256())
                versions.prune()
                spool.drop_through(found.server.round)
            while found.server.round < self.rounds:
                found = self.round(folder, spool, versions, found)
            assert told == []

    def round(self, folder, spool, versions, checkpoint):
        number = checkpoint.server.round + 1
        replies = {}
        for client in CLIENTS:
            data = spool.read(number, client)
            if data is None:
                assert (number, client) not in self.acknowledged, "asked again"
                self.asked += 1
                data = str(self.asked).encode()
                spool.put(number, client, data)
                self.acknowledged[number, client] = self.asked
            replies[client] = int(data)
        before = folder.read_rounds()
        total = sum(sum(r.content["replies"].values()) for r in before) + sum(replies.values())
        assert checkpoint.server.state == self.server(number - 1, total - sum(replies.values())).state
        tracker = checkpoint.tracker.after(number, float(number % 3))
        checkpoint = Checkpoint(RUN, self.server(number, total), tracker, accepted={"ann": number})
        self.commit(folder, versions, checkpoint, replies)
        spool.drop_through(number)
        return checkpoint

    def commit(self, folder, versions, checkpoint, replies):
        number = checkpoint.server.round
        folder.append_round(RoundRecord({"round": number, "replies": replies}))
        versions.add(
            checkpoint.server.state,
            run=RUN,
            round=number,
            parent=number,  # no rollbacks here: version is round + 1
            config_sha256="",
            cohort=tuple(replies),
            metric="x",
            value=0.0,
            best=checkpoint.tracker.best_round == number,
            note=f"round {number}",
            created=0.0,
        )
        checkpoint.save(folder.checkpoint)
        versions.prune()
        return checkpoint

    def check(self):
        """What a restarted server would find, on a copy's worth of fresh objects."""
        folder = RunFolder(self.home)
        found = Checkpoint.load(folder.checkpoint, SPEC, RUN)
        done = -1 if found is None else found.server.round
        records = [r.content for r in folder.keep_rounds(done)]
        assert [r["round"] for r in records] == list(range(done + 1))
        versions = Versions(self.home / "versions", keep=2)
        versions.keep_through(done, "" if found is None else found.server.state.sha256())
        rows = versions.rows()
        assert [(row.version, row.round, row.parent) for row in rows] == [
            (i + 1, i, i) for i in range(done + 1)
        ]
        total = 0
        for record, row in zip(records, rows, strict=True):
            total += sum(record["replies"].values())
            expected = self.server(record["round"], total)
            assert row.sha256 == expected.state.sha256()
            if row.kept:
                assert versions.state(row.version, SPEC) == expected.state
            if record["round"]:
                assert record["replies"].keys() == set(CLIENTS)
            for client, value in record["replies"].items():
                assert self.acknowledged.get((record["round"], client), value) == value
        if found is not None:
            assert found.server.state == expected.state
            assert found.server.noise == expected.noise
            assert (found.server.seeded_state is None) == (expected.seeded_state is None)
            if expected.seeded_state is not None:
                assert found.server.seeded_state.sums.tolist() == expected.seeded_state.sums.tolist()
                assert found.server.seeded_state.total.tolist() == expected.seeded_state.total.tolist()
                assert found.server.seeded_state.origin == expected.seeded_state.origin
            assert rows[-1].kept
            assert rows[0].kept
            best = found.tracker.best_round
            assert best is None or (rows[best].best and rows[best].kept)


@pytest.mark.parametrize("server", [dense, spanned])
@pytest.mark.parametrize("power", [None, random.Random(1)])
def test_every_point_of_a_run(tmp_path, power, server):
    worlds = []

    def serve(home):
        worlds.append(World(home, 1, server))
        worlds[-1].serve()

    crashed = 0
    for point in crash_points(serve, tmp_path, hows=(*CRASHES, "full"), power=power):
        crashed += point.crashed
        if point.error is not None:
            assert isinstance(point.error, StorageError), point
            assert "No space left" in str(point.error)
        world = worlds.pop()
        world.check()
        world.serve()
        world.check()
        assert world.asked <= 3 + 1  # at most the one whose put had not returned
        left = sorted(p.name for p in point.home.rglob("*") if p.is_file())
        assert left == [
            "checkpoint.safetensors",
            "lock",
            "rounds.jsonl",
            "v000001.safetensors",
            "v000002.safetensors",
            "versions.jsonl",
        ]
    assert crashed > 150


def play(seed, home, power):
    chance = random.Random(seed)
    world = World(home, 5, spanned if seed % 2 else dense)
    lives = 0
    while True:
        lives += 1
        how: How = chance.choice([*CRASHES, "full"])
        with Disk(
            home, at=chance.randint(1, 100), how=how, power=random.Random(seed + lives) if power else None
        ) as disk:
            try:
                world.serve()
            except StorageError:
                assert disk.filled
            if power and not disk.filled:
                disk.crashed = True  # power goes at the latest now
        world.check()
        if not disk.fault:
            break
    assert len(RunFolder(home).read_rounds()) == 6
    return lives


def games(tmp_path, first, count, power):
    lives = 0
    for seed in range(first, first + count):
        (home := tmp_path / str(seed)).mkdir()
        lives += play(seed, home, power)
    return lives


@pytest.mark.parametrize("power", [False, True])
def test_random_lives(tmp_path, power):
    assert games(tmp_path, 0, 30, power) > 60


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True])
def test_thousands_of_random_lives(tmp_path, power, capsys):
    lives = games(tmp_path, 10_000, 1000, power)
    with capsys.disabled():
        print(f"\n1000 runs of 5 rounds: {lives} lives")


def test_a_line_without_fsync_is_lost_while_its_checkpoint_stays(tmp_path, monkeypatch):
    """Why ``append_round`` syncs: the oracle finds the order that was here before."""

    def append(self, record):
        with self.rounds.open("a") as file:
            file.write(f'{{"round": {record.round}, "replies": {{}}}}\n')

    monkeypatch.setattr(RunFolder, "append_round", append)

    def one(seed):
        (home := tmp_path / str(seed)).mkdir()
        with Disk(home, power=random.Random(seed)) as disk:
            World(home, 0).serve()
            disk.crashed = True
        World(home, 0).check()

    with pytest.raises(AssertionError):
        [one(seed) for seed in range(20)]


@pytest.mark.parametrize("power", [None, random.Random(1)])
def test_every_point_of_making_a_run_folder(tmp_path, power):
    path = tmp_path / "f.toml"
    path.write_text(
        '[federation]\nname="n"\nrounds=1\n[model]\nkind="vector"\nsize=3\n'
        '[data]\nkind="none"\nclients=2\n[training]\nkind="noop"\n'
    )
    loaded = load_federation(path)

    def create(home):
        RunFolder.create(home / "run", loaded, {"engine": "inprocess"})

    (runs := tmp_path / "runs").mkdir()
    for point in crash_points(create, runs, hows=(*CRASHES, "full"), power=power):
        if point.crashed:
            create(point.home)  # the same command again
        RunFolder.open(point.home / "run")
