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
