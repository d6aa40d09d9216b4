"""One file of all clients' records equals a dict, whoever is killed in a write, however full the disk is."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headwater.client.execution import record_file
from headwater.client.execution.record_file import RecordFile
from headwater.errors import StorageError

PART = 20_000
CLIENTS = st.sampled_from(["ann", "ben", "a/b", "医院 7", "x\x00y"])
KINDS = st.sampled_from(["feedback", "control"])
RECORDS = st.builds(
    lambda size, seed: (bytes([seed]) + seed.to_bytes(2, "big") * size)[:size],
    st.sampled_from([0, 1, 600, PART - 1, PART, PART + 1, 3 * PART, 70_000]),
    st.integers(0, 255),
)


@contextmanager
def most_bytes(size):
    """No write of this process may reach beyond so many bytes of a file: EFBIG, or SIGXFSZ where it kills."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cut(data, pieces):
    """``data`` in so many pieces, the last but one a memoryview."""
    step = -(-len(data) // pieces) or 1
    found = [data[i : i + step] for i in range(0, len(data), step)]
    return [memoryview(p) if i == len(found) - 2 else p for i, p in enumerate(found)]


def in_child(work, *, steps=None, size=None):
    """Run ``work(file)`` in a process that is killed: at a step of SQLite, or in a write at an offset.

    Returns:
        Whether it was killed before it had ended.
    """
    child = os.fork()
    if child == 0:
        try:
            if size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                with most_bytes(size):
                    work(RecordFile)
            else:
                work(lambda path: _dies_at(RecordFile(path), steps))
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _dies_at(file, steps):
    left = [steps]

    def step():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    file.path.parent.mkdir(exist_ok=True)
    file._opened().set_progress_handler(step, 1)
    return file


class LikeADict(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.path = Path(self.home.name, "clients", "store.sqlite")
        self.parts = mock.patch.object(record_file, "PART_BYTES", PART)
        self.parts.start()
        self.model = {}

    @initialize()
    def begin(self):
        self.file = RecordFile(self.path)
        assert not self.path.exists()

    def teardown(self):
        self.file.close()
        self.parts.stop()
        self.home.cleanup()

    def get(self, client, kind):
        with self.file.reading(client, kind) as record:
            return None if record is None else record.read()

    @rule(client=CLIENTS, kind=KINDS, data=RECORDS, pieces=st.integers(1, 4))
    def put(self, client, kind, data, pieces):
        self.file.put(client, kind, cut(data, pieces))
        self.model[client, kind] = data
        assert {p.name for p in self.path.parent.iterdir()} == {"store.sqlite", "store.sqlite-journal"}
        # what a killed process left of a transaction is gone: a journal without a head is none
        assert not any(self.path.with_name("store.sqlite-journal").read_bytes()[:28])

    @rule(client=CLIENTS, kind=KINDS, sizes=st.lists(st.sampled_from([0, 1, 100, PART, 50_000]), max_size=6))
    def read_in_steps(self, client, kind, sizes):
        data = self.model.get((client, kind))
        with self.file.reading(client, kind) as record:
            assert (record is None) == (data is None)
            for size in sizes if record is not None else ():
                assert record.read(size) == data[:size]
                data = data[size:]
            assert record is None or record.read() == data

    @rule()
    def another_process_begins(self):
        self.file.close()
        self.file = RecordFile(self.path)

    @rule(
        client=CLIENTS, kind=KINDS, data=RECORDS,
        steps=st.integers(0, 60), at=st.none() | st.floats(0, 1.2),
    )  # fmt: skip
    def a_process_is_killed_in_a_write(self, client, kind, data, steps, at):
        self.file.close()
        size = None
        if at is not None:
            size = int(at * ((self.path.stat().st_size if self.path.exists() else 0) + len(data) + 20_000))
        killed = in_child(
            lambda make: make(self.path).put(client, kind, [data]),
            steps=steps if at is None else None,
            size=size,
        )
        found = self.get(client, kind)
        assert found in (self.model.get((client, kind)), data)
        assert killed or found == data
        if found is not None:
            self.model[client, kind] = found

    @rule(client=CLIENTS, kind=KINDS, data=RECORDS, at=st.floats(0, 1.2))
    def the_disk_is_full(self, client, kind, data, at):
        before = self.get(client, kind)
        size = self.path.stat().st_size if self.path.exists() else 0
        full = None
        try:
            with most_bytes(int(at * (size + len(data) + 20_000))):
                self.file.put(client, kind, [data])
        except StorageError as error:
            full = error
        assert full is None or "File too large" in str(full)
        assert self.get(client, kind) == (data if full is None else before)
        self.file.put(client, kind, [data])  # the same process goes on
        self.model[client, kind] = data

    @invariant()
    def all_is_there(self):
        for client, kind in self.model:
            assert self.get(client, kind) == self.model[client, kind]


LikeADict.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLikeADict = LikeADict.TestCase


def test_two_processes_write_at_the_same_time(tmp_path):
    def writes(name):
        file = RecordFile(tmp_path / "store.sqlite")
        for number in range(40):
            file.put(name, "feedback", [name.encode() * 5000, b"%d" % number])

    children = []
    for name in ("ann", "ben"):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                writes(name)
            except BaseException:
                os._exit(1)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for name in ("ann", "ben"):
        with RecordFile(tmp_path / "store.sqlite").reading(name, "feedback") as record:
            assert record.read() == name.encode() * 5000 + b"39"


@pytest.mark.parametrize("size", [100_000, 300_000, 1_000_000])
def test_replacing_a_record_needs_no_more_room(tmp_path, size):
    file, data = RecordFile(tmp_path / "store.sqlite"), os.urandom(size)
    sizes = []
    for _ in range(5):
        file.put("ann", "feedback", [data])
        sizes.append((tmp_path / "store.sqlite").stat().st_size)
    assert len(set(sizes)) == 1
    for i in range(19):
        file.put(f"other{i}", "feedback", [data])
    assert (tmp_path / "store.sqlite").stat().st_size < 1.2 * 20 * len(data)


def test_a_later_format_is_refused_by_number(tmp_path):
    path = tmp_path / "store.sqlite"
    RecordFile(path).put("ann", "feedback", [b"x"])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    for use in (
        lambda f: f.put("ann", "feedback", [b"y"]),
        lambda f: f.reading("ann", "feedback").__enter__(),
    ):
        with pytest.raises(StorageError, match=r"format 1, got one of format 2.*version of Headwater"):
            use(RecordFile(path))


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 3000])
def test_a_damaged_file_is_a_storage_error_that_names_it(tmp_path, content):
    path = tmp_path / "store.sqlite"
    path.write_bytes(content)
    with (
        pytest.raises(StorageError, match=r"reading .*store\.sqlite.*feedback of client ann.*SQLITE_NOTADB"),
        RecordFile(path).reading("ann", "feedback"),
    ):
        pass
    with pytest.raises(StorageError, match=r"writing .*store\.sqlite"):
        RecordFile(path).put("ann", "feedback", [b"x"])
    assert path.read_bytes() == content


def test_a_place_that_is_no_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"writing .*: expected room for 1 bytes, got (Not a directory|File exists)"
    ):
        RecordFile(tmp_path / "file" / "store.sqlite").put("ann", "feedback", [b"x"])


def test_another_database_is_left_alone_though_it_has_no_version(tmp_path):
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE kept (a)")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="got another database"):
        RecordFile(path).put("ann", "feedback", [b"x"])
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_called_one(tmp_path):
    (tmp_path / "store.sqlite").mkdir()
    with pytest.raises(StorageError, match="got Is a directory"):
        RecordFile(tmp_path / "store.sqlite").put("ann", "feedback", [b"x"])
