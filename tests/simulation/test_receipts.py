"""A run has one receipt for each committed round, whatever interrupts it; and what `verify` makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from headwater.cli.main import main
from headwater.receipts.check import check_chain
from headwater.receipts.written import RECEIPTS, UPDATES, read_receipts, read_updates
from headwater.server.storage.checkpoint import Checkpoint
from tests.support.runs import OWNERS, resume, run, tiny_federation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("fed"))


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done") / "run"
    run(file, folder)
    return folder


def states(folder):
    return [json.loads(line)["state_sha256"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


def require_one_for_each_round(folder):
    receipts = read_receipts(folder / "receipts" / RECEIPTS)
    check_chain(receipts, str(folder))
    assert [r.result for r in receipts] == states(folder)
    assert [r.round for r in receipts] == list(range(len(receipts)))
    updates = read_updates(folder / "receipts" / UPDATES)
    assert [[e.client for e in updates[n]] for n in range(1, len(receipts))] == [sorted(OWNERS)] * (
        len(receipts) - 1
    )


def test_each_round_has_a_receipt(done):
    require_one_for_each_round(done)


class Killed(BaseException):
    """As a process ends."""


@pytest.mark.parametrize("when", ["before the checkpoint", "before the receipt", "after the checkpoint"])
def test_a_killed_run_has_one_receipt_for_each_round(file, tmp_path, monkeypatch, when):
    from headwater.receipts.written import ReceiptBook

    saves, adds, seen = Checkpoint.save, ReceiptBook.add, []

    def save(self, path):
        if self.server.round == 2 and when == "before the checkpoint":
            raise Killed
        saves(self, path)
        if self.server.round == 2 and when == "after the checkpoint":
            raise Killed

    def add(self, kind, **content):
        seen.append(content["round"])
        if content["round"] == 2 and when == "before the receipt":
            raise Killed
        return adds(self, kind, **content)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        patch.setattr(ReceiptBook, "add", add)
        with pytest.raises(Killed):
            run(file, tmp_path / "run")
    assert 2 in seen
    resume(tmp_path / "run")
    require_one_for_each_round(tmp_path / "run")


def test_verify_says_what_is_proven(done, capsys):
    for path in (done, done / "adapter"):
        assert main(["verify", str(path)]) == 0
        out = capsys.readouterr().out
        assert "receipts, none missing or altered" in out
        assert "its values" in out
        assert "not proven: whose key that is" in out


def test_values_that_were_altered_are_refused(done, tmp_path, capsys):
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(done / "adapter", folder)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    tensors[name] = np.nextafter(tensors[name], np.float32(1))  # one bit of each
    save_file(tensors, weights)
    assert main(["verify", str(folder)]) == 6
    assert "the values that its notes name" in capsys.readouterr().err
    notes = json.loads((folder / "headwater.json").read_text())
    from headwater.receipts import adapter_hash

    digest = adapter_hash._digest(notes["spec"], iter(()))[0]
    assert digest != notes["adapter_sha256"]
    notes["values"] = None  # "take my word": the hash is then another's
    notes["adapter_sha256"] = digest
    (folder / "headwater.json").write_text(json.dumps(notes))
    assert main(["verify", str(folder)]) == 6
    assert "an adapter that a receipt of the run names" in capsys.readouterr().err


def test_notes_that_read_other_values_as_the_receipts_are_refused(done, tmp_path, capsys):
    """Twice the values in twice the unit have the same hash, and are another head."""
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(done / "adapter", folder)
    notes, tensors = (
        json.loads((folder / "headwater.json").read_text()),
        load_file(folder / "head.safetensors"),
    )
    save_file({name: 2 * value for name, value in tensors.items()}, folder / "head.safetensors")
    heads = [tensor for tensor in notes["values"]["tensors"] if tensor["role"] == "head"]
    assert len(heads) == len(tensors)
    for tensor in heads:
        tensor["scaling"] *= 2
    (folder / "headwater.json").write_text(json.dumps(notes))
    assert main(["verify", str(folder)]) == 6
    assert "not of their fingerprint" in capsys.readouterr().err


def test_a_chain_that_was_altered_is_refused(done, tmp_path, capsys):
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(done / "adapter", folder)
    chain = folder / RECEIPTS
    chain.write_bytes(chain.read_bytes().replace(b'"rule":"mean"', b'"rule":"meam"', 1))
    assert main(["verify", str(folder)]) == 6
    assert "receipt 0: signature" in capsys.readouterr().err


def test_a_run_that_goes_on_names_what_it_began_from(done, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    run(tiny_federation(tmp_path / "b"), tmp_path / "next", f'adapter.start="{done / "adapter"}"')
    assert main(["verify", str(tmp_path / "next"), "--before", str(done)]) == 0
    assert "lineage: before it: run" in capsys.readouterr().out
    run(tiny_federation(tmp_path / "b"), tmp_path / "other", "federation.seed=9")
    assert main(["verify", str(tmp_path / "next"), "--before", str(tmp_path / "other")]) == 6
    assert "that it went on from" in capsys.readouterr().err


def test_an_owner_finds_its_updates_without_a_server(done, tmp_path, capsys):
    rows = read_updates(done / "receipts" / UPDATES)
    run_id, owner = read_receipts(done / "receipts" / RECEIPTS)[0].wire, min(OWNERS)
    mine = {e.started: e.sha256 for entries in rows.values() for e in entries if e.client == owner}
    sent = [{"client": owner, "run": run_id, "round": n, "sha256": h, "time": 0} for n, h in mine.items()]
    sent.append({"client": owner, "run": run_id, "round": 9, "sha256": "00" * 32, "time": 0})
    sent.append({"client": owner, "run": "another", "round": 9, "sha256": "11" * 32, "time": 0})
    (tmp_path / "sent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sent))
    best = json.loads((done / "summary.json").read_text())["adapter_round"]
    assert main(["verify", str(done / "adapter"), "--owner", str(tmp_path), "--json"]) == 0
    inside, outside = json.loads(capsys.readouterr().out)["owner"]
    assert inside.endswith("are in it: " + ("1" if best == 1 else f"1-{best}"))
    assert "9" in outside
    assert run_id not in (done / "adapter" / "receipt_leaves.jsonl").read_text()
    leaves = done / "adapter" / "receipt_leaves.jsonl"
    import shutil

    other = tmp_path / "adapter"
    shutil.copytree(done / "adapter", other)
    row = json.loads(leaves.read_text().splitlines()[1])
    row["leaves"] = row["leaves"][::-1]  # the same hashes in another order
    (other / leaves.name).write_text(json.dumps(row) + "\n")
    assert main(["verify", str(other), "--owner", str(tmp_path)]) == 6
    assert "the updates that it has the root of" in capsys.readouterr().err


def test_whose_key_it_is_can_be_asked_for(done, tmp_path, capsys):
    from headwater.security.certificates import Authority

    (tmp_path / "ca.pem").write_bytes(Authority.create("a").certificate_pem)
    assert main(["verify", str(done), "--ca", str(tmp_path / "ca.pem")]) == 6
    assert "one that this authority vouches for" in capsys.readouterr().err
    assert main(["verify", str(done), "--key", "0000"]) == 6
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 2  # no receipts there
