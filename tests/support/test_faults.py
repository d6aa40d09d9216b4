"""The fault injector finds what it must: writers that are wrong in well-known ways, and no right one."""

from __future__ import annotations

import os
import random

import pytest

from headwater.files import append_line, read_lines, write_atomically
from tests.support.crash_points import crash_points
from tests.support.faults import CRASHES, Crash, Disk

OLD, NEW = b"old" * 5000, b"new" * 7000


def in_place(path, data):
    path.write_bytes(data)


def unsynced_rename(path, data):
    temporary = path.with_name("t")
    temporary.write_bytes(data)
    temporary.replace(path)


def unsynced_folder(path, data):
    temporary = path.with_name("t")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def left_after(writer, tmp_path, power):
    """What is in the file after a crash at each point, and what is there after it went well."""
    for seed in range(20 if power else 1):
        chance = random.Random(seed) if power else None
        folder = tmp_path / str(seed)
        folder.mkdir()
        for point in crash_points(
            lambda home: writer(home / "f", NEW),
            folder,
            prepare=lambda home: (home / "f").write_bytes(OLD),
            power=chance,
        ):
            yield point, (point.home / "f").read_bytes()


@pytest.mark.parametrize("power", [False, True])
def test_the_right_writer_leaves_old_or_new(tmp_path, power):
    seen, operations = set(), set()
    for point, content in left_after(write_atomically, tmp_path, power):
        seen.add(content)
        operations.add(point.operation.split()[0] if point.crashed else "")
        if not point.crashed:
            assert content == NEW
    assert seen == {OLD, NEW}
    assert operations == {"create", "write", "fsync", "rename", ""}


@pytest.mark.parametrize(("writer", "power"), [(in_place, False), (in_place, True), (unsynced_rename, True)])
def test_wrong_writers_are_found(tmp_path, writer, power):
    assert {content for _, content in left_after(writer, tmp_path, power)} - {OLD, NEW}


def after_a_cut(writer, tmp_path):
    """What a power cut just after ``writer`` returned leaves."""
    seen = set()
    for seed in range(20):
        (tmp_path / "f").write_bytes(OLD)
        with Disk(tmp_path, power=random.Random(seed)) as disk:
            writer(tmp_path / "f", NEW)
            disk.crashed = True
        seen.add((tmp_path / "f").read_bytes())
    return seen


def test_a_rename_without_a_synced_folder_may_come_undone(tmp_path):
    assert after_a_cut(unsynced_folder, tmp_path) == {OLD, NEW}
    assert after_a_cut(write_atomically, tmp_path) == {NEW}


def test_a_folder_whose_name_was_not_synced_is_lost(tmp_path):
    def careless(path, data):
        path.mkdir(parents=True)
        write_atomically(path / "f", data)

    def left(writer, name):
        with Disk(tmp_path, power=random.Random(1)) as disk:
            writer(tmp_path / name)
            disk.crashed = True
        return (tmp_path / name / "f").exists()

    lost = [left(lambda p: careless(p, b"x"), f"a{i}") for i in range(3)]
    kept = [left(lambda p: write_atomically(p / "f", b"x"), f"b{i}") for i in range(3)]
    assert (all(lost), all(kept)) == (False, True)


def test_the_dead_do_nothing(tmp_path):
    """Cleaning up in ``finally`` and flushing in ``close`` are things that the living do."""

    def clean(home):
        file = (home / "f").open("wb")
        try:
            file.write(b"in the buffer")
            (home / "gone").write_bytes(b"")
        finally:
            file.close()
            (home / "f").unlink()

    points = list(crash_points(clean, tmp_path, hows=("before",)))
    assert [p.operation for p in points] == ["create f", "create gone", "write f", "unlink f", ""]
    with Disk(tmp_path, at=2) as disk:
        clean(tmp_path)
    assert disk.crashed
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b""}
    with pytest.raises(Crash), disk._patches:
        raise Crash  # a BaseException: `except Exception` does not stop it


def test_lines_are_whole_or_absent_and_stay(tmp_path):
    def lines(home):
        return read_lines(home / "lines")

    def two(home):
        for line in (b"1" * 100, b"2" * 100):
            append_line(home / "lines", line)
            done[0] += 1

    done, points = [0], 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for point in crash_points(
            two,
            folder,
            prepare=lambda home: done.__setitem__(0, 0) or (home / "lines").write_bytes(b"0\n"),
            hows=(*CRASHES, "full"),
            power=random.Random(seed),
        ):
            points += 1
            whole = [b"0", b"1" * 100, b"2" * 100]
            assert lines(point.home) in (whole[: done[0] + 1], whole[: done[0] + 2])
            append_line(point.home / "lines", b"3")  # over a torn one
            assert lines(point.home)[-1] == b"3"
            assert lines(point.home)[:-1] == whole[: len(lines(point.home)) - 1]
    assert points > 100


def test_a_full_disk_is_told_by_name_and_room_helps(tmp_path):
    path = tmp_path / "f"
    with Disk(tmp_path, at=2, how="full") as disk:
        with pytest.raises(OSError, match="No space left"):
            path.write_bytes(NEW)
        assert path.stat().st_size == len(NEW) // 2
        disk.free()
        path.write_bytes(NEW)
    assert path.read_bytes() == NEW
    assert not disk.crashed
