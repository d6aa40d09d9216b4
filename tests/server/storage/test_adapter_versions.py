"""Versions of an adapter: lineage for ever, values while they are needed, whole after any crash."""

from __future__ import annotations

import json
import math
import random
import threading

import pytest
from safetensors.torch import load_file

from headwater.errors import ConfigError, SpecMismatch, StorageError
from headwater.protocol.control import AdapterRow
from headwater.server.storage.adapter_versions import Versions
from headwater.state import StateSpec, TensorSpec
from tests.server.storage.version_lists import SPEC, add, numbers, state
from tests.support.crash_points import crash_points
from tests.support.faults import CRASHES


def test_rows_tell_all_and_survive_a_restart(tmp_path):
    versions = Versions(tmp_path / "made" / "adapters", keep=5)
    assert versions.rows() == ()
    assert (versions.best_version(), versions.last_version()) == (0, 0)
    first = add(versions, 0, value=math.nan, cohort=(), note="initial")
    second = add(versions, 1, best=True, value=math.inf)
    third = add(versions, 2, fill=1.0, parent=1)
    assert third == AdapterRow(
        run="r" * 32,
        version=3,
        round=2,
        parent=1,
        sha256=state(1.0).sha256(),
        config_sha256="c" * 64,
        cohort=("ann", "ben"),
        metric="accuracy",
        value=0.52,
        best=False,
        kept=True,
        created=1002.5,
        note="round 2",
    )
    for found in (versions, Versions(tmp_path / "made" / "adapters", keep=5)):
        rows = found.rows()
        assert [row.version for row in rows] == [first.version, second.version, third.version] == [1, 2, 3]
        assert rows[2] == third
        assert [row.best for row in rows] == [False, True, False]
        assert math.isnan(rows[0].value)
        assert math.isnan(rows[1].value)  # JSON has no infinity
        assert (found.best_version(), found.last_version()) == (2, 3)
        assert found.state(3, SPEC) == state(1.0)
        assert found.state(1, SPEC) == state(0.0)
    lines = (tmp_path / "made/adapters/versions.jsonl").read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 2, 3]
    assert load_file(tmp_path / "made/adapters/v000003.safetensors").keys() == SPEC.by_name.keys()


def test_only_one_version_is_the_best(tmp_path):
    versions = Versions(tmp_path, keep=5)
    for number in range(5):
        assert add(versions, number, best=number in (1, 3)).best == (number in (1, 3))
    assert [row.version for row in versions.rows() if row.best] == [4]
    versions = Versions(tmp_path, keep=5)
    assert versions.best_version() == 4
    versions.keep_through(2)
    assert versions.best_version() == 2
    versions.keep_through(0)
    assert versions.best_version() == 1  # the last one: none that is left was measured as best
    assert not any(row.best for row in versions.rows())


def test_the_same_round_again_is_the_same_version(tmp_path):
    versions = Versions(tmp_path, keep=5)
    add(versions, 0)
    row = add(versions, 1, best=True)
    (tmp_path / "v000002.safetensors").write_bytes(b"damage")
    versions = Versions(tmp_path, keep=5)  # killed before its checkpoint, started again
    assert add(versions, 1, best=True, parent=2, created=5e9) == row
    assert versions.rows()[1] == row
    assert versions.state(2, SPEC) == state(1.0)
    assert add(versions, 1, fill=9.0, parent=1).version == 3  # other values: another version
    assert add(versions, 1, fill=1.0, parent=2, note="rollback to version 2").version == 4
    assert add(versions, 1, fill=1.0, parent=2, note="rollback to version 2").version == 4


def test_a_parent_that_is_no_version_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a parent of 0 to 0, got 1"):
        add(Versions(tmp_path, keep=5), 0, parent=1)
    assert not list(tmp_path.iterdir())


def test_rounds_that_never_happened_are_dropped(tmp_path):
    versions = Versions(tmp_path, keep=5)
    for number in range(5):
        add(versions, number)
    versions.pin(2)
    versions.pin(5)
    versions.keep_through(9)
    assert len(versions.rows()) == 5
    versions.keep_through(2)
    for found in (versions, Versions(tmp_path, keep=5)):
        assert [row.round for row in found.rows()] == [0, 1, 2]
        assert numbers(found) == [1, 2, 3]
        with pytest.raises(ConfigError, match=r"version 4: .*1, 2, 3, got no such version"):
            found.state(4, SPEC)
    assert json.loads((tmp_path / "pinned.json").read_text()) == [2]
    assert add(versions, 3, fill=7.0, parent=3).version == 4
    assert versions.state(4, SPEC) == state(7.0)


def test_a_rollback_that_was_not_committed_is_dropped_by_its_values(tmp_path):
    versions = Versions(tmp_path, keep=5)
    for number in range(3):
        add(versions, number)
    add(versions, 2, fill=1.0, parent=2, note="rollback to version 2")
    versions.keep_through(2, state(1.0).sha256())  # committed
    assert len(versions.rows()) == 4
    versions.keep_through(2, "f" * 64)  # values that no version has: by round alone
    assert len(versions.rows()) == 4
    versions.keep_through(2, state(2.0).sha256())  # the checkpoint still has round 2's own values
    assert [row.note for row in versions.rows()] == ["round 0", "round 1", "round 2"]


def test_pruning_keeps_the_last_the_best_the_first_and_the_pinned(tmp_path):
    versions = Versions(tmp_path, keep=2)
    for number in range(10):
        add(versions, number, best=number == 3)
    versions.pin(7)
    versions.pin(7)
    assert versions.prune() == (2, 3, 5, 6, 8)
    assert versions.prune() == ()
    for found in (versions, Versions(tmp_path, keep=2)):
        assert numbers(found) == [1, 4, 7, 9, 10]
        assert len(found.rows()) == 10
        with pytest.raises(
            ConfigError, match=r"version 5: .*1, 4, 7, 9, 10, got one whose values were pruned"
        ):
            found.state(5, SPEC)
        with pytest.raises(ConfigError, match="pruned"):
            found.pin(5)
        with pytest.raises(ConfigError, match="no such version"):
            found.pin(11)
        assert found.state(4, SPEC) == state(3.0)
    add(versions, 10, best=True)
    assert versions.prune() == (4, 9)
    assert len(list(tmp_path.iterdir())) == 4 + 2  # values; rows and pins


def test_what_a_rollback_gave_up_is_no_ancestor(tmp_path):
    versions = Versions(tmp_path, keep=9)
    assert not versions.descends_from(0)

    def rounds(found):
        return [n for n in range(9) if found.descends_from(n)]

    for number in range(5):
        add(versions, number, parent=number)
    assert rounds(versions) == [0, 1, 2, 3, 4]
    add(versions, 4, fill=1.0, parent=2, note="rollback to version 2")
    assert rounds(versions) == [0, 1, 4]  # 4: the rollback itself
    add(versions, 5, parent=6)
    assert rounds(versions) == [0, 1, 4, 5]
    add(versions, 5, fill=3.0, parent=4, note="rollback to version 4")
    for found in (versions, Versions(tmp_path, keep=9)):
        assert rounds(found) == [0, 1, 2, 3, 5]
    versions.keep_through(4)
    assert rounds(versions) == [0, 1, 4]


def test_what_is_unpinned_is_kept_as_long_as_any_other(tmp_path):
    versions = Versions(tmp_path, keep=1)
    for number in range(4):
        add(versions, number)
    versions.pin(2)
    versions.pin(3)
    versions.prune()
    versions.unpin(2)
    assert numbers(versions) == [1, 2, 3, 4]  # the next pruning does it
    assert Versions(tmp_path, keep=1).prune() == (2,)
    with pytest.raises(ConfigError, match=r"version 2: .*an export or a rollback keeps: 3, got another"):
        versions.unpin(2)
    versions.unpin(3)
    with pytest.raises(ConfigError, match="there is none"):
        versions.unpin(9)


def test_a_row_that_an_append_tore_is_left_out_and_overwritten(tmp_path):
    versions = Versions(tmp_path, keep=5)
    add(versions, 0)
    add(versions, 1)
    path = tmp_path / "versions.jsonl"
    whole = path.read_bytes()
    cut = whole.index(b"\n") + 1
    for end in {*range(cut, len(whole), 25), len(whole) - 1}:
        path.write_bytes(whole[:end])
        (tmp_path / "v000002.safetensors").write_bytes(b"of the torn row")
        versions = Versions(tmp_path, keep=5)
        assert len(versions.rows()) == 1
        assert numbers(versions) == [1]
        add(versions, 1)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{}\n", b"zz\n", b"\xff\xfe\n", b"null\n", b"\n"])
def test_a_damaged_row_is_told_by_its_line(tmp_path, damage):
    versions = Versions(tmp_path, keep=5)
    for number in range(3):
        add(versions, number)
    path = tmp_path / "versions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + lines[2])
    with pytest.raises(StorageError, match=r"versions\.jsonl line 2: .*the row of version 2"):
        Versions(tmp_path, keep=5)


def test_damaged_values_are_told_by_their_version(tmp_path):
    versions = Versions(tmp_path, keep=5)
    add(versions, 0)
    path = tmp_path / "v000001.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises((StorageError, SpecMismatch), match="version 1"):
            versions.state(1, SPEC)
        path.write_bytes(whole[:position])
        with pytest.raises(StorageError, match="adapter version 1"):
            versions.state(1, SPEC)
    path.write_bytes(whole)
    with pytest.raises(SpecMismatch, match="adapter version 1"):
        versions.state(1, StateSpec.of([TensorSpec("a.head", (4,), "head")]))


def test_what_a_crash_left_is_cleared(tmp_path):
    versions = Versions(tmp_path, keep=5)
    add(versions, 0)
    (tmp_path / ".v000002.safetensors.4242.tmp").write_bytes(b"half")
    (tmp_path / "v000002.safetensors").write_bytes(b"values without a row")
    (tmp_path / ".export-x").mkdir()
    (tmp_path / ".export-x" / "file").write_bytes(b"half")
    Versions(tmp_path, keep=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v000001.safetensors", "versions.jsonl"]


def test_a_damaged_list_of_pins_is_told(tmp_path):
    (tmp_path / "pinned.json").write_text("7")
    with pytest.raises(StorageError, match=r"pinned\.json"):
        Versions(tmp_path, keep=5)


def test_readers_see_whole_rows_while_a_run_writes(tmp_path):
    versions = Versions(tmp_path, keep=3)
    add(versions, 0)
    wrong, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                rows = versions.rows()
                assert [row.version for row in rows] == list(range(1, len(rows) + 1))
                versions.state(1, SPEC)
                versions.state(rows[-1].version, SPEC)
            except ConfigError as error:
                wrong.extend([] if "were pruned" in str(error) else [error])  # while this thread slept
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 60):
        add(versions, number)
        versions.prune()
    stop.set()
    thread.join()
    assert wrong == []


@pytest.mark.parametrize("power", [None, random.Random(1), random.Random(2)])
def test_every_point_of_adding(tmp_path, power):
    """The version is there or not, the others are as they were, and the same round can be added again."""
    kept = []

    def act(home):
        kept.clear()
        kept.append(Versions(home, keep=5))
        add(kept[0], 2)

    def prepare(home):
        versions = Versions(home, keep=5)
        add(versions, 0)
        add(versions, 1, best=True)

    outcomes = set()
    for point in crash_points(act, tmp_path, prepare=prepare, hows=(*CRASHES, "full"), power=power):
        if point.how == "full" and point.crashed:
            assert isinstance(point.error, StorageError)
            assert "No space left" in str(point.error)
            opened = [*kept, None]  # there is room again: the same process goes on
        else:
            opened = [None]
        for found in opened:
            versions = found or Versions(point.home, keep=5)
            rows = versions.rows()
            outcomes.add(len(rows))
            assert [row.round for row in rows] in ([0, 1], [0, 1, 2])
            for row in rows:
                assert row.kept
                assert versions.state(row.version, SPEC).sha256() == row.sha256
            assert add(versions, 2).version == 3
            assert [row.round for row in Versions(point.home, keep=5).rows()] == [0, 1, 2]
        assert len(list(point.home.iterdir())) == 4
    assert outcomes == {2, 3}


@pytest.mark.parametrize("power", [None, random.Random(1)])
@pytest.mark.parametrize("what", ["keep_through", "pin", "prune"])
def test_every_point_of_the_rest(tmp_path, power, what):
    def act(home):
        versions = Versions(home, keep=1)
        {"keep_through": lambda: versions.keep_through(1), "pin": lambda: versions.pin(3)}.get(
            what, versions.prune
        )()

    def prepare(home):
        versions = Versions(home, keep=1)
        for number in range(5):
            add(versions, number, best=number in (1, 3))
        versions.pin(2)

    for point in crash_points(act, tmp_path, prepare=prepare, hows=(*CRASHES, "full"), power=power):
        versions = Versions(point.home, keep=1)
        rows = versions.rows()
        assert [row.round for row in rows] in ([0, 1, 2, 3, 4], [0, 1])
        assert what == "keep_through" or len(rows) == 5
        assert rows[0].kept
        assert rows[1].kept
        for row in rows:
            if row.kept:
                assert versions.state(row.version, SPEC).sha256() == row.sha256
        act(point.home)  # done again, it ends as if nothing had happened
        end = Versions(point.home, keep=1)
        assert numbers(end) == {"keep_through": [1, 2], "pin": [1, 2, 3, 4, 5], "prune": [1, 2, 4, 5]}[what]
        assert json.loads((point.home / "pinned.json").read_text()) == ([2, 3] if what == "pin" else [2])
