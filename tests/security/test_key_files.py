"""Private keys on disk: closed to others, never written over, whole or refused."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from headwater.errors import StorageError
from headwater.security.signing import Identity
from tests.security.claims import REPLY, REPLY_SIGNATURE
from tests.security.people import ANN, BOB


def test_private_keys_go_into_no_log_and_no_other_process():
    assert repr(ANN) == str(ANN) == f"Identity('ann', {ANN.public.fingerprint()})"
    with pytest.raises(TypeError):
        pickle.dumps(ANN)


def test_keys_are_new_each_time():
    one, two = Identity.create("a").public, Identity.create("a").public
    assert one.signing_key != two.signing_key
    assert one.node_key != two.node_key


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    ANN.save(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_saved_and_loaded_with_the_right_rights(tmp_path, umask):
    folder = tmp_path / "deep" / "keys"
    folder.parent.mkdir()
    before = os.umask(umask)
    try:
        if umask == 0o277:  # a folder nobody may write into is no place for keys; files still are
            folder.mkdir()
            folder.chmod(0o700)
        ANN.save(folder)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "signing.key": 0o600, "node.key": 0o600, "identity.json": 0o600,
    }  # fmt: skip
    assert Identity.load(folder).public == ANN.public
    signed = Identity.load(folder).sign_reply(REPLY)
    assert signed.hex() == REPLY_SIGNATURE


def test_a_file_is_closed_from_its_first_moment(tmp_path, monkeypatch):
    opened = []
    real = os.open

    def spy(path, flags, *rights, **others):
        handle = real(path, flags, *rights, **others)
        if flags & os.O_CREAT:
            opened.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", spy)
    before = os.umask(0)
    try:
        ANN.save(tmp_path / "keys")
    finally:
        os.umask(before)
    assert opened == [0o600] * 3


def test_openssl_reads_the_files(folder):
    for name, kind in (("signing.key", "ED25519"), ("node.key", "384 bit")):
        shown = subprocess.run(
            ["openssl", "pkey", "-in", name, "-noout", "-text_pub"], cwd=folder, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert kind in shown.stdout


@pytest.mark.parametrize("name", ["signing.key", "node.key", "identity.json"])
@pytest.mark.parametrize("rights", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
def test_keys_that_others_could_read_or_write_are_refused(folder, name, rights):
    (folder / name).chmod(rights)
    with pytest.raises(StorageError, match=rf"{name}: expected rights 0600.*got {rights:04o}.*chmod 600"):
        Identity.load(folder)


def test_a_folder_that_others_can_write_into_is_refused(folder):
    folder.chmod(0o755)
    Identity.load(folder)
    folder.chmod(0o770)
    with pytest.raises(StorageError, match=r"expected rights 0700.*got 0770.*chmod 700"):
        Identity.load(folder)


def test_keys_are_not_put_where_others_look(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "other").touch()
    with pytest.raises(StorageError, match=r"expected rights 0700.*got 0755"):
        ANN.save(tmp_path)
    (tmp_path / "other").unlink()
    ANN.save(tmp_path)
    assert mode(tmp_path) == 0o700


def test_keys_are_never_written_over(folder):
    ANN.save(folder)
    with pytest.raises(StorageError, match=r"those of ann.*never written over"):
        BOB.save(folder)
    assert Identity.load(folder).public == ANN.public


def test_a_save_that_was_cut_short_can_be_repeated(folder):
    (folder / "identity.json").unlink()
    with pytest.raises(StorageError, match=r"identity\.json.*headwater client enroll"):
        Identity.load(folder)
    BOB.save(folder)
    assert Identity.load(folder).public == BOB.public


@pytest.mark.parametrize("name", ["signing.key", "node.key", "identity.json"])
@pytest.mark.parametrize(
    "damage", [None, b"", b"\x00\xff", b"x" * 70_000, b"[" * 60_000, b"-----BEGIN PRIVATE KEY-----\n"]
)
def test_missing_or_damaged_keys(folder, name, damage):
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    with pytest.raises(StorageError, match=rf"{name}.*headwater client enroll"):
        Identity.load(folder)


def test_a_huge_file_is_not_read(folder):
    with (folder / "node.key").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match=r"node\.key: expected at most 65536 bytes"):
        Identity.load(folder)


def test_a_pipe_in_place_of_a_key_does_not_hang(folder):
    (folder / "node.key").unlink()
    os.mkfifo(folder / "node.key", 0o600)
    with pytest.raises(StorageError, match=r"node\.key.*expected a file"):
        Identity.load(folder)


def test_a_key_of_another_kind_or_device_is_refused(folder, tmp_path):
    signing, node = (folder / "signing.key").read_bytes(), (folder / "node.key").read_bytes()
    (folder / "signing.key").write_bytes(node)
    with pytest.raises(StorageError, match=r"signing\.key: expected an Ed25519 key"):
        Identity.load(folder)
    (folder / "signing.key").write_bytes(signing)
    (folder / "node.key").write_bytes(signing)
    with pytest.raises(StorageError, match=r"node\.key: expected a P-384 key"):
        Identity.load(folder)
    other_curve = ec.derive_private_key(3, ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "node.key").write_bytes(other_curve)
    with pytest.raises(StorageError, match=r"node\.key: expected a P-384 key"):
        Identity.load(folder)
    BOB.save(tmp_path / "bob")
    (folder / "node.key").write_bytes((tmp_path / "bob" / "node.key").read_bytes())
    with pytest.raises(StorageError, match="fingerprint"):
        Identity.load(folder)


@pytest.mark.parametrize(
    "facts", [[], 3, {}, {"name": 3, "fingerprint": "x"}, {"name": "a/b", "fingerprint": ""}]
)
def test_damaged_facts(folder, facts):
    (folder / "identity.json").write_text(json.dumps(facts))
    with pytest.raises(StorageError, match=r"identity\.json"):
        Identity.load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(StorageError, match="headwater client enroll"):
        Identity.load(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="got a file"):
        Identity.load(tmp_path / "file")
    with pytest.raises(StorageError, match="folder"):
        ANN.save(tmp_path / "file")


def test_a_full_disk_leaves_what_was_there(folder, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        ANN.save(folder)
    monkeypatch.undo()
    assert Identity.load(folder).public == ANN.public
    assert len(list(folder.iterdir())) == 3
