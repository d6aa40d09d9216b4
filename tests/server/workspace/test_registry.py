"""Who is enrolled: a name once, a key once and for ever, seen by every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headwater.errors import ConfigError, StorageError
from headwater.security.signing import PublicIdentity
from headwater.server.workspace.registry import ClientRegistry
from tests.security.people import identity

KEYS = [identity("x", seed).public for seed in range(1, 7)]


def device(name, keys=0, node=None):
    """A device with the given pairs of keys."""
    return PublicIdentity(name, KEYS[keys].signing_key, KEYS[keys if node is None else node].node_key)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clients.json"


def test_accepted_is_found_by_name_also_by_another_reader(path):
    registry = ClientRegistry(path)
    assert registry.get("ann") is None
    record = registry.accept(device("ann"))
    assert record.public == device("ann")
    assert record.revoked_at is None
    assert registry.get("ann") == record == ClientRegistry(path).get("ann")


def test_revoked_stays_known_as_revoked(path):
    registry = ClientRegistry(path)
    registry.accept(device("ann"))
    first = registry.revoke("ann")
    assert first.revoked_at is not None
    assert registry.revoke("ann") == first
    assert ClientRegistry(path).get("ann").revoked_at == first.revoked_at


@pytest.mark.parametrize("name", ["ann", "Ann", "ANN"])
def test_a_name_is_taken_once_whatever_its_case(path, name):
    registry = ClientRegistry(path)
    registry.accept(device("ann", 0))
    with pytest.raises(ConfigError, match="expected a name that is free, got ann"):
        registry.accept(device(name, 1))
    assert list(registry.by_name()) == ["ann"]


def test_the_same_device_once_more_is_told_that_it_is_enrolled_not_to_be_revoked(path):
    registry = ClientRegistry(path)
    registry.accept(device("ann"))
    with pytest.raises(ConfigError, match=r"same keys, enrolled .* Nothing is left to do") as caught:
        registry.accept(device("ann"))
    assert "revoke" not in str(caught.value)


@pytest.mark.parametrize(("keys", "node"), [(0, 0), (0, 1), (1, 0)])
def test_either_key_is_taken_once(path, keys, node):
    registry = ClientRegistry(path)
    registry.accept(device("ann", 0))
    with pytest.raises(
        ConfigError,
        match="no other client has or had, got a key of ann, which is enrolled",
    ):
        registry.accept(device("bob", keys, node))


def test_a_revoked_name_comes_back_with_new_keys_and_its_old_keys_never_do(path):
    registry = ClientRegistry(path)
    registry.accept(device("ann", 0))
    registry.revoke("ann")
    for keys, node in [(0, 0), (0, 1), (1, 0)]:
        with pytest.raises(ConfigError, match=r"revoked.*move state/keys away"):
            registry.accept(device("ann", keys, node))
    assert registry.accept(device("ann", 1)).revoked_at is None
    for name in ("bob", "ann"):  # now the file no longer has those keys under any name
        for keys, node in [(0, 0), (0, 2), (2, 0)]:
            with pytest.raises(ConfigError, match=r"new keys|free"):
                registry.accept(device(name, keys, node))
    with pytest.raises(ConfigError, match="new keys"):
        ClientRegistry(path).accept(device("bob", 0))


def test_a_stranger_cannot_be_revoked(path):
    with pytest.raises(ConfigError, match="'ann': expected an enrolled name"):
        ClientRegistry(path).revoke("ann")


def test_the_file_is_closed_to_others_under_any_umask(path):
    before = os.umask(0)
    try:
        ClientRegistry(path).accept(device("ann"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name(".clients.json.lock").stat().st_mode & 0o077 == 0


def test_another_process_is_seen_and_told_to_those_who_ask(path):
    here, there, heard = ClientRegistry(path), ClientRegistry(path), []
    here.on_change(lambda record: heard.append((record.public.name, record.revoked_at is not None)))
    there.accept(device("ann", 0))
    assert heard == []
    assert here.get("ann") is not None
    there.revoke("ann")
    here.refresh()
    here.accept(device("bob", 1))
    there.accept(device("cid", 2))
    here.revoke("bob")  # learns of cid on its way
    assert heard == [("ann", False), ("ann", True), ("bob", False), ("cid", False), ("bob", True)]
    here.refresh()
    assert len(heard) == 5


def test_a_replacement_is_seen_even_if_size_and_time_are_the_same(path):
    here, there = ClientRegistry(path), ClientRegistry(path)
    there.accept(device("ann", 0))
    assert here.get("ann") is not None
    moment = path.stat().st_mtime_ns
    text = path.read_text().replace('"ann"', '"bob"')
    for _ in range(3):  # the inode that was freed first may be given again
        path.with_name("new").write_text(text)
        os.utime(path.with_name("new"), ns=(moment, moment))
        path.with_name("new").rename(path)
        assert list(here.by_name()) == (["bob"] if '"bob"' in text else ["ann"])
        text = text.replace('"bob"', '"eve"').replace('"ann"', '"bob"').replace('"eve"', '"ann"')


def test_a_callback_that_fails_does_not_keep_the_next_from_hearing(path):
    registry, heard = ClientRegistry(path), []

    def fail(record):
        raise RuntimeError

    registry.on_change(fail)
    registry.on_change(heard.append)
    registry.accept(device("ann"))
    assert len(heard) == 1


def test_a_callback_may_ask_the_registry_and_others_meanwhile_too(path):
    """No lock is held while callbacks run: one that waits for another thread's question gets an answer."""
    registry, answers = ClientRegistry(path), []

    def ask(record):
        thread = threading.Thread(target=lambda: answers.append(registry.accept(device("bob", 1))))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()

    registry.on_change(lambda record: ask(record) if record.public.name == "ann" else None)
    registry.accept(device("ann", 0))
    assert len(answers) == 1
    assert sorted(registry.by_name()) == ["ann", "bob"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"signing_key": "', '"signing_key": "00'),
        lambda text: text.replace("BEGIN", "BEGIM"),
        lambda text: text.replace('"ann"', '"../ann"'),
        lambda text: text.replace('"revoked_at": null', '"revoked_at": 1'),
        None,
    ],
)
def test_damage_is_named_and_those_known_before_stay(path, damage):
    here = ClientRegistry(path)
    record = here.accept(device("ann"))
    whole = path.read_text()
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(whole))
        with pytest.raises(StorageError, match=r"clients\.json.*backup"):
            ClientRegistry(path)
    assert here.get("ann") == record
    assert "clients.json" in here.problem
    with pytest.raises(StorageError):
        here.accept(device("bob", 1))
    path.write_text(whole)
    assert here.accept(device("bob", 1))
    assert here.problem == ""


def test_a_client_who_vanishes_from_the_file_counts_as_revoked(path):
    registry, heard = ClientRegistry(path), []
    registry.accept(device("ann"))
    registry.on_change(heard.append)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "clients": []}))
    registry.refresh()
    assert [(r.public.name, r.revoked_at is None) for r in heard] == [("ann", False)]


def test_new_keys_under_a_name_are_told_after_the_end_of_the_old_ones(path):
    """Also when both happened between two looks."""
    here, there, heard = ClientRegistry(path), ClientRegistry(path), []
    here.accept(device("ann", 0))
    here.on_change(lambda record: heard.append((record.public, record.revoked_at is None)))
    there.revoke("ann")
    there.accept(device("ann", 1))
    here.refresh()
    assert heard == [(device("ann", 0), False), (device("ann", 1), True)]


ACCEPT = """
import sys
from pathlib import Path
from headwater.security.signing import Identity
from headwater.server.workspace.registry import ClientRegistry
registry = ClientRegistry(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    registry.accept(Identity.create(f"{sys.argv[2]}-{number}").public)
"""


def test_two_processes_that_accept_at_once_lose_nobody(path):
    command = [sys.executable, "-c", ACCEPT, str(path)]
    running = [subprocess.Popen([*command, name, "12"]) for name in ("left", "right")]
    assert [process.wait(60) for process in running] == [0, 0]
    expected = sorted(f"{name}-{number}" for name in ("left", "right") for number in range(12))
    assert list(ClientRegistry(path).by_name()) == expected


def test_a_full_disk_leaves_the_file_as_it_was(path):
    ClientRegistry(path).accept(device("ann"))
    before, limit = path.read_bytes(), path.stat().st_size + 100
    program = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{ACCEPT}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), "bob", "1"], capture_output=True, text=True, check=False
    )
    assert "StorageError" in done.stderr
    assert "What was there before is intact" in done.stderr
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [".clients.json.lock", "clients.json"]


class Life(RuleBasedStateMachine):
    """Two processes' registries on one file behave as one dictionary does."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "clients.json"
        self.both = [ClientRegistry(path), ClientRegistry(path)]
        self.alive, self.names, self.used = {}, set(), set()

    @rule(which=st.integers(0, 1), name=st.sampled_from(["a", "b", "c"]), keys=st.integers(0, 5))
    def accept(self, which, name, keys):
        allowed = keys not in self.used and name not in self.alive
        try:
            self.both[which].accept(device(name, keys))
        except ConfigError:
            assert not allowed
        else:
            assert allowed
            self.used.add(keys)
            self.names.add(name)
            self.alive[name] = keys

    @rule(which=st.integers(0, 1), name=st.sampled_from(["a", "b", "c"]))
    def revoke(self, which, name):
        try:
            self.both[which].revoke(name)
        except ConfigError:
            assert name not in self.names
        else:
            assert name in self.names
            self.alive.pop(name, None)

    @invariant()
    def agree(self):
        for registry in self.both:
            found = registry.by_name()
            assert set(found) == self.names
            alive = {n: r.public for n, r in found.items() if r.revoked_at is None}
            assert alive == {n: device(n, keys) for n, keys in self.alive.items()}

    def teardown(self):
        self.folder.cleanup()


Life.TestCase.settings = settings(max_examples=25, stateful_step_count=20)
TestLife = Life.TestCase
