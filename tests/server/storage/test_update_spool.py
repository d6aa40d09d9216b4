"""The open round's replies survive whatever happens, and damage is never folded."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from headwater.errors import StorageError
from headwater.server.storage.update_spool import Spool
from tests.support.crash_points import crash_points
from tests.support.faults import CRASHES, Disk

NAMES = ("ann", "ben", "Größe 7", "医" * 64, "..", "a/b")


def contents(spool):
    return {r: replies_of(spool, r) for r in spool.rounds()}


def replies_of(spool, round):
    """The replies of a round that are not damaged, by client."""
    found = {client: spool.read(round, client) for client in spool.clients(round)}
    return {client: data for client, data in found.items() if data is not None}


def test_what_was_put_is_there_after_a_restart(tmp_path):
    spool = Spool(tmp_path / "made" / "here")
    for i, name in enumerate(reversed(NAMES)):
        spool.put(3, name, b"\n%d\0" % i * 1000)
        spool.put(4, name, b"", started=i)
    for found in (spool, Spool(tmp_path / "made" / "here")):
        assert found.rounds() == (3, 4)
        assert found.clients(3) == tuple(sorted(NAMES))
        assert found.read(3, "ann") == b"\n5\0" * 1000
        assert list(replies_of(found, 3)) == sorted(NAMES)
        assert found.started(4) == {name: 5 - i for i, name in enumerate(NAMES)}
        assert found.started(3) == {}
        assert found.clients(5) == ()
        assert found.read(5, "ann") is None
        assert found.read(3, "cleo") is None
        assert found.used_bytes == sum(p.stat().st_size for p in (tmp_path / "made/here").iterdir())


def test_a_second_reply_replaces_the_first(tmp_path):
    spool = Spool(tmp_path)
    spool.put(1, "ann", b"one")
    spool.put(1, "ann", b"two", started=7)
    for found in (spool, Spool(tmp_path)):
        assert replies_of(found, 1) == {"ann": b"two"}
        assert found.started(1) == {"ann": 7}
    assert len(list(tmp_path.iterdir())) == 1


def test_rounds_are_dropped_up_to_one_and_replies_removed(tmp_path):
    spool = Spool(tmp_path)
    for number in (1, 2, 999_999, 1_000_000):
        spool.put(number, "ann", b"x")
        spool.put(number, "ben", b"y")
    spool.remove(2, "ann")
    spool.remove(2, "ann")
    assert replies_of(spool, 2) == {"ben": b"y"}
    spool.drop_through(999_999)
    for found in (spool, Spool(tmp_path)):
        assert contents(found) == {1_000_000: {"ann": b"x", "ben": b"y"}}
    spool.drop_through(1_000_000)
    assert not list(tmp_path.iterdir())
    assert spool.used_bytes == 0


def test_it_is_bounded(tmp_path):
    spool = Spool(tmp_path, max_bytes=1000)
    spool.put(1, "ann", bytes(500))
    with pytest.raises(StorageError, match=r"at most 1000 bytes.*client ben"):
        spool.put(1, "ben", bytes(500))
    spool.put(1, "ann", bytes(800))  # replaces, so there is room
    assert contents(spool) == contents(Spool(tmp_path)) == {1: {"ann": bytes(800)}}
    spool.drop_through(1)
    spool.put(2, "ben", bytes(800))


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "another's", "gone", "foreign"])
def test_damage_is_set_aside_and_told_once(tmp_path, damage, at_start):
    told = []
    spool = Spool(tmp_path, notice=told.append)
    for name in ("ann", "ben", "cleo"):
        spool.put(1, name, name.encode() * 100)
    path = tmp_path / "000001-ben.reply"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "flip": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
                "cut": whole[:-1],
                "empty": b"",
                "another's": (tmp_path / "000001-ann.reply").read_bytes(),
                "foreign": b"HWSP1\nwhat is this",
            }[damage]
        )
    if at_start:
        spool = Spool(tmp_path, notice=told.append)
        assert spool.clients(1) == ("ann", "cleo")
    assert replies_of(spool, 1) == {"ann": b"ann" * 100, "cleo": b"cleo" * 100}
    assert spool.read(1, "ben") is None
    assert len(told) == (0 if damage == "gone" and at_start else 1)
    assert all("000001-ben.reply" in text and "\n" not in text for text in told)
    if damage != "gone":
        assert (tmp_path / "000001-ben.reply.damaged").exists()
    again = Spool(tmp_path, notice=told.append)
    assert again.clients(1) == ("ann", "cleo")
    assert len(told) <= 1
    again.put(1, "ben", b"sent again")
    assert replies_of(again, 1)["ben"] == b"sent again"
    again.drop_through(1)
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    Spool(tmp_path).put(1, "ann", b"reply")
    path = tmp_path / "000001-ann.reply"
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [
        whole[:n] + bytes([whole[n] ^ 1 << bit]) + whole[n + 1 :] for n in range(len(whole)) for bit in (0, 7)
    ]
    for content in damaged:
        path.write_bytes(content)
        assert Spool(tmp_path).rounds() == ()


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "1-ann.reply").write_text("not of this form")
    (tmp_path / ".000001-ann.reply.4242.tmp").write_text("of a process that was killed")
    spool = Spool(tmp_path)
    assert spool.rounds() == ()
    spool.drop_through(10**9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-ann.reply", "notes.txt"]


def test_a_folder_that_cannot_be_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="opening"):
        Spool(tmp_path / "file")


def test_memory_does_not_grow_with_replies(tmp_path):
    spool = Spool(tmp_path)
    for i in range(40):
        spool.put(1, f"client {i}", random.Random(i).randbytes(500_000))
    del spool
    tracemalloc.start()
    spool = Spool(tmp_path)
    assert len(spool.clients(1)) == 40
    for client in spool.clients(1):
        spool.read(1, client)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # of 20 MB


@pytest.mark.parametrize("power", [None, random.Random(1), random.Random(2)])
def test_every_point_of_a_put(tmp_path, power):
    """Old or new, and the other replies as they were; after a full disk the same spool goes on."""
    kept = []

    def put(home):
        kept.clear()
        kept.append(Spool(home / "spool"))
        kept[0].put(1, "ann", b"new" * 9999, started=2)
        kept[0].put(1, "cleo", b"first" * 9999)

    def prepare(home):
        Spool(home / "spool").put(1, "ann", b"old", started=1)
        Spool(home / "spool").put(1, "ben", b"other")

    for point in crash_points(put, tmp_path, prepare=prepare, hows=(*CRASHES, "full"), power=power):
        told = []
        if point.how == "full" and point.crashed:
            assert isinstance(point.error, StorageError)
            assert "No space left" in str(point.error)
            kept[:] = kept or [Spool(point.home / "spool")]
            kept[0].put(1, "ann", b"newer")
            assert replies_of(kept[0], 1)["ann"] == b"newer"
            kept[0].put(1, "ann", b"old")
            if "cleo" in point.operation or "cleo" not in kept[0].clients(1):
                assert kept[0].clients(1) == Spool(point.home / "spool").clients(1) == ("ann", "ben")
        spool = Spool(point.home / "spool", notice=told.append)
        found = replies_of(spool, 1)
        assert found["ben"] == b"other"
        assert found["ann"] in (b"old", b"new" * 9999)
        assert found.get("cleo") in (None, b"first" * 9999)
        assert told == []
        assert len(list((point.home / "spool").iterdir())) == len(found)
        if not point.crashed:
            assert found.keys() == {"ann", "ben", "cleo"}


def play(seed, folder, power):
    """Random use with crashes anywhere, against a dict; what was acknowledged is there, and no more."""
    chance = random.Random(seed)
    told = []
    model: dict[tuple[int, str], bytes] = {}
    dropped, crashes, full = 0, 0, 0
    spool = Spool(folder, notice=told.append)
    for step in range(30):
        number, name = dropped + chance.randint(1, 2), chance.choice(NAMES)
        what = chance.choices(["put", "remove", "drop", "restart"], [10, 2, 2, 1])[0]
        value = chance.randbytes(chance.choice([0, 10, 20_000]))
        before = dict(model)
        fails = chance.random() < 0.4
        returned = False
        with Disk(
            folder,
            at=chance.randint(1, 6) if fails else None,
            how=chance.choice([*CRASHES, "full"]),
            power=random.Random(step) if power else None,
        ) as disk:
            try:
                if what == "put":
                    spool.put(number, name, value, started=step)
                elif what == "remove":
                    spool.remove(number, name)
                elif what == "drop":
                    spool.drop_through(dropped + 1)
                else:
                    spool = Spool(folder, notice=told.append)
                returned = True
            except StorageError:
                assert disk.filled
            if power and fails and not disk.filled:
                disk.crashed = True
        after = dict(before)
        if what == "put":
            after[number, name] = value
        elif what == "remove":
            after.pop((number, name), None)
        elif what == "drop":
            dropped += 1
            after = {key: v for key, v in before.items() if key[0] > dropped}
        if disk.crashed:
            spool = Spool(folder, notice=told.append)
            spool.drop_through(dropped)  # as the server does at its start
        crashes, full = crashes + disk.crashed, full + disk.filled
        found = {(r, c): data for r in spool.rounds() for c, data in replies_of(spool, r).items()}
        if what == "drop":
            before = after  # it goes on at the next start
        # a removal may have happened and its fsync not
        assert found == after if returned else found in (before, after), f"seed {seed} step {step} {what}"
        model = found
    assert told == []
    assert contents(Spool(folder)) == contents(spool)
    return crashes, full


def games(tmp_path, first, count, power):
    crashes = full = 0
    for seed in range(first, first + count):
        (folder := tmp_path / str(seed)).mkdir()
        one, two = play(seed, folder, power)
        crashes, full = crashes + one, full + two
    return crashes, full


@pytest.mark.parametrize("power", [False, True])
def test_random_use_with_crashes(tmp_path, power):
    crashes, full = games(tmp_path, 0, 60, power)
    assert crashes > 150
    assert full > 40


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True])
def test_random_use_with_thousands_of_crashes(tmp_path, power, capsys):
    crashes, full = games(tmp_path, 10_000, 1000, power)
    with capsys.disabled():
        print(f"\n1000 games of 30 steps: {crashes} crashes, {full} full disks")
