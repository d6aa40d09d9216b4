"""A backup holds one moment of a daemon at work; a hostile one harms nobody."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy
import pytest
from safetensors.numpy import save

from headwater.errors import ConfigError, DecodeError, StorageError
from headwater.security.signing import PublicIdentity
from headwater.server.metrics import Tracker
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.workspace import backup as backup_module
from headwater.server.workspace.archive import LIST
from headwater.server.workspace.backup import backup, restore
from headwater.server.workspace.workspace import Workspace
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.strategy import ServerState
from tests.security.people import identity

SPEC = StateSpec.of([TensorSpec("a", (3, 2), "float32"), TensorSpec("b", (5,), "float32")])


def state(value):
    return AdapterState.zeros(SPEC).map(lambda tensor: tensor + value)


def checkpoint(number, best=None):
    server = ServerState(number, state(number), state(-number))
    return Checkpoint("run", server, Tracker("loss", 0, 1.0, 0), best=best, accepted={"ann": number})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workspace = Workspace.init(tmp_path_factory.mktemp("made") / "fl")
    workspace.registry().accept(PublicIdentity("ann", *keys(1)))
    run = workspace.runs / "first-1"
    (run / "state" / "spool").mkdir(parents=True)
    (run / "versions").mkdir()
    (run / "state" / "spool" / "000008-ann.reply").write_bytes(b"in flight")
    (run / "state" / "lock").write_bytes(b"")
    (run / "state" / ".checkpoint.safetensors.12.tmp").write_bytes(b"half")
    for name in ("tensorboard/events", "trackers/csv/rounds.csv", "state/trackers/csv.json"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text("of a tracker")
    (run / "rounds.jsonl").write_text('{"round": 7}\n')
    (run / "versions" / "v000001.safetensors").write_bytes(save({"a": numpy.ones(3, "float32")}))
    checkpoint(7, best=state(7)).save(run / "state" / "checkpoint.safetensors")
    workspace.runs_book.write_text("[]")
    (workspace.path / "logs" / "daemon.log").write_text("a line")
    (workspace.path / "lock").write_text("1")
    return workspace


def keys(seed):
    public = identity("x", seed).public
    return public.signing_key, public.node_key


@pytest.fixture
def workspace(made, tmp_path):
    """A copy that a test may spoil."""
    subprocess.run(["cp", "-a", str(made.path), str(tmp_path / "fl")], check=True)
    return Workspace(tmp_path / "fl")


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


KEPT = {
    "server.toml", "federation.toml", "clients.json", "runs.json", "runs/first-1/rounds.jsonl",
    "runs/first-1/versions/v000001.safetensors", "runs/first-1/state/checkpoint.safetensors",
}  # fmt: skip


def test_what_is_restored_is_what_was_there_without_secrets_logs_locks_trackers_and_spool(made, tmp_path):
    facts = backup(made, tmp_path / "b.tar")
    again = restore(tmp_path / "new", tmp_path / "b.tar")
    assert facts == again
    assert not facts.secrets
    before, after = files(made.path), files(tmp_path / "new")
    assert set(after) == KEPT
    assert all(after[name] == before[name] for name in KEPT)
    restored = Workspace(tmp_path / "new")
    assert list(restored.registry().by_name()) == ["ann"]
    found = Checkpoint.load(restored.runs / "first-1" / "state" / "checkpoint.safetensors", SPEC, "run")
    assert found.server.round == 7
    with pytest.raises(StorageError, match=r"restored from a backup without secrets.*--authority"):
        Workspace.open(restored.path)
    restored.credentials.renew_authority("again", ["localhost"])
    Workspace.open(restored.path)


def test_with_secrets_the_server_is_whole_again_and_nobody_else_may_read_it(made, tmp_path):
    before = os.umask(0)
    try:
        assert backup(made, tmp_path / "b.tar", with_secrets=True).secrets
        assert restore(tmp_path / "new", tmp_path / "b.tar").secrets
    finally:
        os.umask(before)
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    assert Workspace.open(tmp_path / "new").credentials.ca() == made.credentials.ca()
    for path in (tmp_path / "new").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_any_tar_can_read_it(made, tmp_path):
    backup(made, tmp_path / "b.tar")
    listed = subprocess.run(["tar", "tf", tmp_path / "b.tar"], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == KEPT | {LIST}
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert json.load(tar.extractfile(LIST))["secrets"] is False


def test_an_existing_file_or_folder_is_not_written_over(made, tmp_path):
    (tmp_path / "b.tar").write_text("precious")
    with pytest.raises(ConfigError, match="got a file that exists"):
        backup(made, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_text() == "precious"
    backup(made, tmp_path / "c.tar")
    with pytest.raises(ConfigError, match=r"got one with b\.tar"):
        restore(tmp_path, tmp_path / "c.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar", "c.tar"]


WRITE = """
import sys, pathlib
from headwater.files import write_atomically, append_line
from safetensors.numpy import save
from tests.server.workspace.test_backup import checkpoint
run, number = pathlib.Path(sys.argv[1]), 8
while True:  # a round, in the server's order
    write_atomically(run / "versions" / f"v{number:06}.safetensors", f"{number}".encode(), durable=False)
    append_line(run / "versions" / "versions.jsonl", f"{number}".encode())
    append_line(run / "rounds.jsonl", b'{"round": %d}' % number)
    checkpoint(number).save(run / "state" / "checkpoint.safetensors")
    (run / "versions" / f"v{number - 4:06}.safetensors").unlink(missing_ok=True)
    if number == 8:
        print("running", flush=True)
    number += 1
"""


def test_a_backup_of_a_busy_daemon_is_a_state_in_which_it_could_have_been_killed(workspace, tmp_path):
    """Rounds as fast as they go, while backups are taken: each is one the server can go on from."""
    run = workspace.runs / "first-1"
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(run)], stdout=subprocess.PIPE, text=True)
    seen = set()
    try:
        assert writer.stdout.readline() == "running\n"
        for number in range(8):
            backup(workspace, tmp_path / f"{number}.tar")
    finally:
        writer.kill()
        writer.wait()
    for number in range(8):
        restore(tmp_path / f"{number}", tmp_path / f"{number}.tar")
        there = tmp_path / f"{number}" / "runs" / "first-1"
        found = Checkpoint.load(there / "state" / "checkpoint.safetensors", SPEC, "run").server.round
        rounds = [json.loads(line)["round"] for line in (there / "rounds.jsonl").read_text().splitlines()]
        rows = [int(line) for line in (there / "versions" / "versions.jsonl").read_text().splitlines()]
        kept = {int(p.stem[1:]) for p in (there / "versions").glob("v*.safetensors")} - {1}
        assert rounds[-1] - found in (0, 1)  # the line comes before the checkpoint
        assert rows[-1] - rounds[-1] in (0, 1)
        assert max(kept) - rows[-1] in (0, 1)
        assert set(range(max(8, found - 2), found + 1)) <= kept  # what is not pruned is there
        seen.add(found)
    assert len(seen) > 1  # it did go on meanwhile


def test_a_damaged_checkpoint_is_found_when_it_is_backed_up(workspace, tmp_path):
    path = workspace.runs / "first-1" / "state" / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"checkpoint runs/first-1/state.*does not match its hash"):
        backup(workspace, tmp_path / "b.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["fl"]


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_checkpoint_that_was_cut_off_is_found(workspace, tmp_path, size):
    path = workspace.runs / "first-1" / "state" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StorageError, match="checkpoint"):
        backup(workspace, tmp_path / "b.tar")


def test_a_link_among_the_runs_is_named(workspace, tmp_path):
    (workspace.runs / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="elsewhere: expected a file or a folder"):
        backup(workspace, tmp_path / "b.tar")


def test_files_that_never_stand_still_end_in_an_error(workspace, tmp_path, monkeypatch):
    from headwater.server.workspace import snapshot

    real, book = snapshot._walk, workspace.runs_book
    monkeypatch.setattr(snapshot, "PAUSE_S", 0)

    def walk(*arguments):
        book.write_text(book.read_text() + " ")
        return real(*arguments)

    monkeypatch.setattr(snapshot, "_walk", walk)
    with pytest.raises(StorageError, match=r"changes at each of 200 looks\. Pause the run"):
        backup(workspace, tmp_path / "b.tar")


def test_a_full_disk_leaves_no_backup(workspace, tmp_path):
    program = (
        "import resource, sys, pathlib\n"
        "from headwater.server.workspace.backup import backup\n"
        "from headwater.server.workspace.workspace import Workspace\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "backup(Workspace(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(workspace.path), str(tmp_path / "out" / "b.tar")]
    (tmp_path / "out").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "StorageError" in done.stderr
    assert "Free space, or write it to another disk." in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_returns_other_bytes_is_found_before_the_backup_counts(workspace, tmp_path, monkeypatch):
    real = backup_module.Writer.add

    def add(self, member):
        real(self, member)
        self._file.seek(-600, io.SEEK_CUR)
        self._file.write(b"?")
        self._file.seek(0, io.SEEK_END)

    monkeypatch.setattr(backup_module.Writer, "add", add)
    with pytest.raises((StorageError, DecodeError)):
        backup(workspace, tmp_path / "b.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["fl"]


def test_a_full_disk_leaves_nothing_half_restored(made, tmp_path):
    backup(made, tmp_path / "b.tar")
    program = (
        "import resource, sys, pathlib\nfrom headwater.server.workspace.backup import restore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "restore(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "new"), str(tmp_path / "b.tar")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "StorageError" in done.stderr
    assert list((tmp_path / "new").iterdir()) == []


def entry(name, data=b"data", **fields):
    """A member of a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def hostile(name, data=b"data", **fields):
    """A tar that is a backup but for one member: were that taken, all of it would be."""
    listed = {"server.toml": b"x = 1", name: data}
    hashes = {n: (len(d), hashlib.sha256(d).hexdigest()) for n, d in listed.items()}
    content = {"format": 1, "created": "", "version": "", "secrets": False, "files": hashes}
    last = entry(LIST, json.dumps(content).encode())
    return entry("server.toml", b"x = 1") + entry(name, data, **fields) + last + bytes(1024)


def test_such_a_tar_with_a_plain_member_is_taken(tmp_path):
    (tmp_path / "b.tar").write_bytes(hostile("runs/x"))
    restore(tmp_path / "new", tmp_path / "b.tar")
    assert files(tmp_path / "new") == {"server.toml": b"x = 1", "runs/x": b"data"}


@pytest.mark.parametrize(
    "data",
    [
        hostile("/etc/cron.d/x"),
        hostile("../x"),
        hostile("runs/../../x"),
        hostile("runs//x"),
        hostile("./runs/x"),
        hostile("runs/.hidden"),
        hostile("runs/a\\b"),
        hostile("runs/a\nb"),
        hostile("lock"),
        hostile("passwd"),
        hostile("/".join(["runs", *"abcdefghijklmnopqrst"])),
        hostile("runs/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        hostile("runs/link", b"", type=tarfile.LNKTYPE, linkname="server.toml"),
        hostile("runs/dev", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        hostile("runs/dev", b"", type=tarfile.BLKTYPE),
        hostile("runs/fifo", b"", type=tarfile.FIFOTYPE),
        hostile("runs", b"", type=tarfile.DIRTYPE),
        hostile("runs/sparse", type=tarfile.GNUTYPE_SPARSE),
        hostile("runs/" + "n" * 300),  # a long name in a head of its own
        hostile("runs/big", size=2**40),
        hostile("runs/short", size=3),
        hostile("server.toml"),  # twice
        hostile("runs/negative", size=-512),
        entry(LIST, b"{}") + bytes(1024),
        entry(LIST, b'{"format": 9, "files": {}}') + bytes(1024),
        entry(LIST, b'{"format": 1, "files": {}}') + bytes(1024),
        entry(LIST, b'{"format": 1, "files": {"server.toml": [1, "x"]}}') + bytes(1024),
        entry("server.toml") + bytes(1024),  # and no list
        b"",
        b"not a tar",
        bytes(1024),
        b"\x1f\x8b" + bytes(1000),
    ],
)
def test_a_hostile_tar_is_refused_and_leaves_nothing(tmp_path, data):
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(DecodeError):
        restore(tmp_path / "deep" / "new", tmp_path / "b.tar")
    assert list((tmp_path / "deep" / "new").iterdir()) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b.tar", "deep", "new"]


def test_a_backup_that_was_altered_or_cut_off_anywhere_is_refused(made, tmp_path):
    backup(made, tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    cuts = [whole[:size] for size in range(0, len(whole) - 1024, 997)]
    flips = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(512, len(whole), 4099)]
    outcomes = []
    for number, data in enumerate([*cuts, *flips]):
        (tmp_path / "x.tar").write_bytes(data)
        try:
            restore(tmp_path / f"{number}", tmp_path / "x.tar")
            outcomes.append(files(tmp_path / f"{number}"))
        except DecodeError:
            assert list((tmp_path / f"{number}").iterdir()) == []
    good = {name: data for name, data in files(made.path).items() if name in KEPT}
    assert all(outcome == good for outcome in outcomes)  # padding, owners and times may be altered
    assert len(outcomes) < len(flips) / 2


def test_a_backup_into_a_folder_that_is_not_there_says_so(made, tmp_path):
    with pytest.raises(StorageError, match=r"No such file.*Make that folder first"):
        backup(made, tmp_path / "nightly" / "b.tar")


def test_without_the_archive_nothing_is_made(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        restore(tmp_path / "new", tmp_path / "b.tar")
    assert list(tmp_path.iterdir()) == []
