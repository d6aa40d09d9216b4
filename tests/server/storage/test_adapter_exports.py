"""A version leaves as a tar: in pieces, whole, and with nothing left behind."""

from __future__ import annotations

import io
import json
import random
import tarfile

import pytest
import torch

from headwater.config import load_federation
from headwater.errors import ConfigError, StorageError
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.tar import PIECE, tar
from headwater.state import AdapterState
from headwater.training.context import TrainingContext
from tests.support.federations import adapted, adapter, federation


def vector_context(tmp_path, size):
    path = tmp_path / "f.toml"
    path.write_text(
        f'[federation]\nname="n"\nrounds=1\n[model]\nkind="vector"\nsize={size}\n'
        '[data]\nkind="none"\nclients=2\n[training]\nkind="noop"\n'
    )
    return TrainingContext.open(load_federation(path))


def test_a_tar_is_in_pieces_and_leaves_nothing_behind(tmp_path):
    context = vector_context(tmp_path, 700_000)
    versions = Versions(tmp_path / "adapters", keep=5)
    add_state = AdapterState.from_vector(context.spec, torch.randn(700_000))
    fields = {"run": "r", "parent": 0, "config_sha256": "c", "cohort": (), "metric": "loss", "value": 1.0}
    versions.add(add_state, round=0, best=False, note="initial", created=0.0, **fields)
    pieces = list(versions.tar(1, context, {"name": "n"}))
    assert [len(piece) for piece in pieces[:-1]] == [PIECE] * 2
    assert len(pieces[-1]) <= PIECE
    assert b"".join(versions.tar(1, context, {"name": "n"})) == b"".join(pieces)
    versions.export(1, context, tmp_path / "out", {"name": "n"})
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}
    assert members == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    half = versions.tar(1, context, {})
    next(half)
    assert len(list((tmp_path / "adapters").iterdir())) == 3
    half.close()
    assert len(list((tmp_path / "adapters").iterdir())) == 2
    with pytest.raises(ConfigError, match="no such version"):
        next(versions.tar(2, context, {}))


def test_a_tar_without_room_is_a_storage_error(tmp_path, monkeypatch):
    context = vector_context(tmp_path, 3)
    versions = Versions(tmp_path / "adapters", keep=5)

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", lambda *a: full())
    with pytest.raises(StorageError, match="No space left"):
        next(versions.tar(1, context, {}))


def test_a_tar_is_what_tar_reads(tmp_path):
    """Python's own reader is the oracle; sizes around block and piece borders."""
    for size in (0, 1, 511, 512, 513, PIECE - 1536, PIECE - 512, PIECE, PIECE + 1):
        (tmp_path / f"{size:08d}").write_bytes(random.Random(size).randbytes(size))
    (tmp_path / "folder").mkdir()
    pieces = list(tar(tmp_path))
    assert all(len(piece) == PIECE for piece in pieces[:-1])
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        assert [m.name for m in archive] == sorted(p.name for p in tmp_path.iterdir() if p.is_file())
        for member in archive:
            assert archive.extractfile(member).read() == (tmp_path / member.name).read_bytes()
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_a_real_adapter_comes_out_whole_and_in_an_order_of_its_own(tmp_path):
    targets = ("value", "query", "key", "attention.output.dense", "intermediate.dense", "output.dense")
    loaded = federation(
        tmp_path, "sequence-classification", "bert", adapter("lora", "bert", target_modules=targets)
    )
    model = adapted(loaded)
    context = TrainingContext(loaded, model, model.spec, model.base_sha256)
    versions = Versions(tmp_path / "adapters", keep=5)
    made = context.initial_state().map(lambda value: value + 0.25)
    fields = {"run": "r", "parent": 0, "config_sha256": "c", "cohort": (), "metric": "loss", "value": 1.0}
    versions.add(made, round=0, best=False, note="initial", created=0.0, **fields)
    data = b"".join(versions.tar(1, context, {}))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(archive.getnames())
        config = json.load(archive.extractfile("adapter_config.json"))
        notes = json.load(archive.extractfile("headwater.json"))
    assert config["target_modules"] == sorted(targets)  # a set's order would differ between processes
    assert notes["adapter_sha256"] == made.sha256()


def test_who_lists_the_versions_of_a_run_does_not_end_anothers_export(tmp_path):
    """The page lists them every few seconds, while an export may take minutes."""
    context = vector_context(tmp_path, 5_000_000)  # tar reads it a piece at a time
    versions = Versions.of_run(tmp_path / "run", keep=2)
    made = versions.add(
        context.initial_state(),
        run="r",
        round=0,
        parent=0,
        config_sha256="c",
        cohort=(),
        metric="loss",
        value=1.0,
        best=True,
        note="initial",
        created=0.0,
    )
    pieces = versions.tar(made.version, context, {})
    first = next(pieces)
    other = Versions.of_run(tmp_path / "x" / ".." / "run", keep=2)
    assert [row.version for row in other.rows()] == [1]
    with tarfile.open(fileobj=io.BytesIO(b"".join([first, *pieces]))) as found:
        assert sorted(found.getnames()) == ["adapter_model.safetensors", "headwater.json"]
