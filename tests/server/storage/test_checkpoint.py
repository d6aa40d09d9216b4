"""A checkpoint is what was saved, or a StorageError; the folder keeps whole files only."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from headwater.config import load_federation
from headwater.errors import ConfigError, StorageError
from headwater.files import write_atomically
from headwater.merging import Merged
from headwater.merging.plan import NoisePlan
from headwater.seeds.directions import Directions
from headwater.seeds.seeded_state import SeededState
from headwater.seeds.slopes import SeedSlopes
from headwater.server.metrics import Tracker
from headwater.server.round_record import RoundRecord
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from headwater.server.workspace.backup import Pinned, check_checkpoint
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy
from headwater.strategies.strategy import ServerState
from tests.strategies.test_federated import federation

SPEC = StateSpec.of([TensorSpec("b", (2, 3), "lora_b"), TensorSpec("a", (4,), "head")])


def state(fill):
    return AdapterState.from_vector(SPEC, torch.arange(10, dtype=torch.float32) * fill)


def checkpoint(best=2.0, momentum=3.0):
    return Checkpoint(
        run="r" * 32,
        server=ServerState(4, state(1.0), None if momentum is None else state(momentum)),
        tracker=Tracker("accuracy", 3, 0.1 + 0.2, 1),
        best=None if best is None else state(best),
        accepted={"ann": 4, "ben": 2},
    )


@pytest.mark.parametrize("best", [None, 1.0, 2.0])
@pytest.mark.parametrize("momentum", [None, 3.0])
def test_round_trip(tmp_path, best, momentum):
    written = checkpoint(best, momentum)
    written.save(tmp_path / "c")
    read = Checkpoint.load(tmp_path / "c", SPEC, "r" * 32)
    assert read.server.round == 4
    assert read.server.state.sha256() == written.server.state.sha256()
    assert (read.server.momentum is None) == (momentum is None)
    assert (read.best is None) == (best is None)
    if best is not None:
        assert read.best.sha256() == written.best.sha256()
    assert read.tracker == written.tracker
    assert read.accepted == written.accepted


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "adagrad"])
def test_a_server_that_restarts_between_all_rounds_makes_the_same_steps(tmp_path, name):
    settings = {"kind": "mean", "server_optimizer": name, "server_learning_rate": 0.03}
    settings |= {"server_momentum": 0.9} if name == "momentum" else {}
    strategy = FederatedStrategy(federation(strategy=settings))
    steady, tracker, path = strategy.init(state(1.0)), Tracker("accuracy"), tmp_path / "c"
    Checkpoint("r" * 32, steady, tracker).save(path)
    for number in range(4):
        merged = Merged(state(0.01 * (-2) ** number), ("ann",), 1)
        steady = strategy.update(steady, merged)
        read = Checkpoint.load(path, SPEC, "r" * 32)
        Checkpoint("r" * 32, strategy.update(read.server, merged), tracker).save(path)
    assert Checkpoint.load(path, SPEC, "r" * 32).server == steady
    assert (steady.second_moment is None) == (name == "momentum")


def test_a_damaged_second_moment_is_seen(tmp_path):
    path = tmp_path / "c"
    written = checkpoint()
    replace(written, server=replace(written.server, second_moment=state(0.5))).save(path)
    arrays, meta = load_file(path), metadata(path)
    arrays["second_moment/a"][0] += 1
    save_file(arrays, path, metadata={"headwater": json.dumps(meta)})
    with pytest.raises(StorageError, match="second_moment does not match"):
        Checkpoint.load(path, SPEC, "r" * 32)


def spanned():
    origin = SeededState(
        state(0.5), Directions(b"0123456789abcdef", "rademacher", 10), 30, np.zeros(3, np.int64)
    )
    seeded_state = origin.plus(1, np.array([5, -(2**40), 2**33 + 1]))
    server = ServerState(
        4,
        seeded_state.state(),
        None,
        NoisePlan(0.1 + 0.2, {"default": 0.0, "phone": 1e-300}, {"default": 1.0, "phone": 0.1}),
        seeded_state,
    )
    return Checkpoint("r" * 32, server, Tracker("accuracy"), accepted={"ann": 4})


def test_coefficients_and_noise_come_back_bit_for_bit(tmp_path):
    written = spanned()
    written.save(tmp_path / "c")
    read = Checkpoint.load(tmp_path / "c", SPEC, "r" * 32)
    was, seeded_state = written.server.seeded_state, read.server.seeded_state
    assert read.server.noise == written.server.noise
    assert seeded_state.sums.tolist() == was.sums.tolist() == [0, 5, -(2**40), 2**33 + 1]
    assert (seeded_state.directions, seeded_state.unit_bits, seeded_state.origin) == (
        was.directions,
        was.unit_bits,
        was.origin,
    )
    assert seeded_state.plus(0, np.array([9])).state() == was.plus(0, np.array([9])).state()
    pinned = (tmp_path / "c").open("rb")
    with pinned:
        check_checkpoint(Pinned("c", pinned.fileno(), (tmp_path / "c").stat().st_size, 0.0))


def test_steepness_comes_back_bit_for_bit_and_damage_is_seen(tmp_path):
    seed_slopes = SeedSlopes(np.array([0.1 + 0.2, 0.0, 1e300]), np.array([3, 0, 2**40]))
    written = spanned()
    written = replace(written, server=replace(written.server, seed_slopes=seed_slopes))
    path = tmp_path / "c"
    written.save(path)
    read = Checkpoint.load(path, SPEC, "r" * 32).server.seed_slopes
    assert read.sums.tobytes() == seed_slopes.sums.tobytes()
    assert read.counts.tolist() == [3, 0, 2**40]
    arrays, meta = load_file(path), metadata(path)
    arrays["steepness/counts"] = arrays["steepness/counts"] + 1
    save_file(arrays, path, metadata={"headwater": json.dumps(meta)})
    with pytest.raises(StorageError, match="steepness"):
        Checkpoint.load(path, SPEC, "r" * 32)


def test_a_checkpoint_of_an_older_version_loads(tmp_path):
    path = tmp_path / "c"
    checkpoint().save(path)
    arrays, meta = load_file(path), metadata(path)
    assert meta.pop("noise", 0) is None
    assert meta.pop("span", 0) is None
    save_file(arrays, path, metadata={"headwater": json.dumps(meta)})
    read = Checkpoint.load(path, SPEC, "r" * 32)
    assert (read.server.seeded_state, read.server.noise, read.server.second_moment) == (None, None, None)
    assert read.server.state == checkpoint().server.state


def metadata(path):
    data = path.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(head["__metadata__"]["headwater"])


@pytest.mark.parametrize("change", ["sums", "unit_bits"])
def test_coefficients_that_are_not_those_of_the_state_are_damage(tmp_path, change):
    path = tmp_path / "c"
    spanned().save(path)
    arrays, meta = load_file(path), metadata(path)
    if change == "sums":
        arrays["span/sums"][0] += 1
    else:
        meta["span"]["unit_bits"] -= 1
    save_file(arrays, path, metadata={"headwater": json.dumps(meta)})
    with pytest.raises(StorageError, match="damage"):
        Checkpoint.load(path, SPEC, "r" * 32)


@pytest.mark.parametrize(
    "noise",
    [
        {"between": (-5.0).hex()},
        {"between": "nan"},
        {"of": {"default": "inf"}},
        {"of": ["0x1p0"]},
        {"progress": {"default": (1.5).hex()}},
        {"progress": {"default": "nan"}},
        {"progress": 1},
    ],
)
def test_noise_that_no_round_tells_is_damage(tmp_path, noise):
    path = tmp_path / "c"
    spanned().save(path)
    arrays, meta = load_file(path), metadata(path)
    meta["noise"] |= noise
    save_file(arrays, path, metadata={"headwater": json.dumps(meta)})
    with pytest.raises(StorageError, match="damage"):
        Checkpoint.load(path, SPEC, "r" * 32)


def test_speeds_of_links_come_back_and_take_no_room_where_nobody_measures(tmp_path):
    checkpoint().save(tmp_path / "c")
    assert "links" not in metadata(tmp_path / "c")
    links = {"ann": (3, 10**17), "ben": (0,)}
    replace(checkpoint(), server=replace(checkpoint().server, links=links)).save(tmp_path / "c")
    assert Checkpoint.load(tmp_path / "c", SPEC, "r" * 32).server.links == links


@pytest.mark.parametrize("links", [7, ["ann"], {"ann": 5}, {"ann": [1.5]}, {"ann": [True]}, {"ann": [-1]}])
def test_links_that_nobody_measured_are_damage(tmp_path, links):
    path = tmp_path / "c"
    checkpoint().save(path)
    arrays, meta = load_file(path), metadata(path) | {"links": links}
    save_file(arrays, path, metadata={"headwater": json.dumps(meta)})
    with pytest.raises(StorageError, match="damage"):
        Checkpoint.load(path, SPEC, "r" * 32)


def test_absent_is_none(tmp_path):
    assert Checkpoint.load(tmp_path / "c", SPEC, "r" * 32) is None


def test_every_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / "c"
    checkpoint().save(path)
    whole = path.read_bytes()
    for position in range(len(whole) - 1, len(whole) - 120, -7):  # values, from the end
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StorageError, match="damage"):
            Checkpoint.load(path, SPEC, "r" * 32)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError, match="damage"):
            Checkpoint.load(path, SPEC, "r" * 32)


def test_another_run_or_spec_is_refused(tmp_path):
    checkpoint().save(tmp_path / "c")
    with pytest.raises(StorageError, match="has changed since"):
        Checkpoint.load(tmp_path / "c", SPEC, "s" * 32)
    with pytest.raises(StorageError, match="has changed since"):
        Checkpoint.load(tmp_path / "c", StateSpec.of([TensorSpec("a", (4,), "head")]), "r" * 32)


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c"
    write_atomically(path, b"old")

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_real_full_disk(tmp_path):
    """/dev/full answers every write with ENOSPC."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    folder = RunFolder(tmp_path)
    (tmp_path / "rounds.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"(?i)space"):
        folder.append_round(RoundRecord({"round": 1, "x": "y" * 100_000}))


@pytest.fixture
def loaded(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text(
        '[federation]\nname="n"\nrounds=1\n[model]\nkind="vector"\nsize=3\n'
        '[data]\nkind="none"\nclients=2\n[training]\nkind="noop"\n'
    )
    return load_federation(path)


def test_rounds_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path, loaded):
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    for number in range(4):
        folder.append_round(RoundRecord({"round": number}))
    with folder.rounds.open("a") as file:
        file.write('{"round": 4, "cl')
    assert [r.round for r in folder.read_rounds()] == [0, 1, 2, 3]
    assert [r.round for r in folder.keep_rounds(2)] == [0, 1, 2]
    assert [json.loads(line)["round"] for line in folder.rounds.read_text().splitlines()] == [0, 1, 2]


def test_a_folder_in_use_is_not_overwritten(tmp_path, loaded):
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    folder.checkpoint.write_bytes(b"a run that began")
    with pytest.raises(ConfigError, match="--resume"):
        RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    with folder.locked(), pytest.raises(ConfigError, match="no other process works on"), folder.locked():
        pass
    with pytest.raises(ConfigError, match="another one"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("key", ["run", "spec", "tracker", "accepted"])
def test_a_file_that_lacks_a_key_is_damaged(tmp_path, key):
    """Found by ``make fuzz``: another file's metadata, without a run, ended in a KeyError."""
    checkpoint().save(tmp_path / "c")
    with safe_open(tmp_path / "c", framework="np") as file:
        meta = json.loads(file.metadata()["headwater"])
    del meta[key]
    save_file(load_file(tmp_path / "c"), tmp_path / "c", {"headwater": json.dumps(meta)})
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.load(tmp_path / "c", SPEC, "r" * 32)


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a.astype(np.float64), lambda a: a[None]])
def test_a_file_whose_tensors_have_another_form_is_damaged(tmp_path, change):
    """Found by ``make fuzz``: it ended in a SpecMismatch."""
    checkpoint().save(tmp_path / "c")
    with safe_open(tmp_path / "c", framework="np") as file:
        metadata = file.metadata()
    arrays = load_file(tmp_path / "c")
    arrays["state/a"] = change(arrays["state/a"])
    save_file(arrays, tmp_path / "c", metadata)
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.load(tmp_path / "c", SPEC, "r" * 32)
