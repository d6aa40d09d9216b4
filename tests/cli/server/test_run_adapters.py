"""``headwater server adapters|rollback|export``: versions listed, and unpacked whole or not at all."""

from __future__ import annotations

import json
import re
import tarfile

import pytest

from headwater.cli.server.exports import unpack
from headwater.errors import DecodeError, StorageError
from tests.cli.server.folders import tar_of
from tests.support.command import headwater


def test_adapters_are_listed(folder, organiser):
    done = headwater("server", "adapters", "list", folder)
    assert done.out.startswith("run r1\n")
    assert re.search(r"2 +1 +1 +best +accuracy 0\.750 +ann, bo .* 111111111111 +round 1", done.out)
    rows = json.loads(headwater("server", "adapters", "list", folder, "r1", "--json").out)
    assert [(r["version"], r["value"]) for r in rows] == [(1, None), (2, 0.75)]
    assert organiser.calls == [("adapters", ""), ("adapters", "r1")]


def test_rollback(folder, organiser):
    done = headwater("server", "adapters", "rollback", folder, "r1", "1")
    assert "from version 1" in done.out
    assert organiser.calls == [("rollback", "r1", 1)]


def test_unpin(folder, organiser):
    done = headwater("server", "adapters", "unpin", folder, "r1", "2")
    assert "version 2 is kept no longer" in done.out
    assert organiser.calls == [("unpin", "r1", 2)]


def test_an_export_is_unpacked(folder, organiser, tmp_path):
    data = tar_of(("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"x" * 3_000_000))
    organiser.archive = [data[i : i + 70_000] for i in range(0, len(data), 70_000)]
    out = tmp_path / "new" / "adapter"
    done = headwater("server", "adapters", "export", folder, "--version", "2", "--out", out)
    assert done.code == 0, done.err
    assert sorted(p.name for p in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (out / "adapter_model.safetensors").stat().st_size == 3_000_000
    assert [p.name for p in out.parent.iterdir()] == ["adapter"]
    assert (
        done.out == f"{out}: run r1, version 2 (the best, after round 1, accuracy 0.750), 3,000,002 bytes\n"
    )
    assert organiser.calls == [("adapters", ""), ("export", "r1", 2)]
    assert "holds something" in headwater("server", "adapters", "export", folder, "--out", out).error
    assert len(organiser.calls) == 2  # refused before the daemon was asked
    empty = tmp_path / "empty"
    empty.mkdir()
    assert headwater("server", "adapters", "export", folder, "r1", "--out", empty).code == 0
    assert (empty / "adapter_config.json").read_bytes() == b"{}"


def test_an_exported_adapter_loads(folder, organiser, tmp_path):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import BertModel

    from tests.support.tiny_models import tiny_bert

    base = tiny_bert(tmp_path / "base")
    torch.manual_seed(1)
    made = get_peft_model(
        BertModel.from_pretrained(base),
        LoraConfig(r=2, target_modules=["query"], init_lora_weights=False),
    )
    made.save_pretrained(tmp_path / "made")
    organiser.archive = [tar_of(*((p.name, p.read_bytes()) for p in sorted((tmp_path / "made").iterdir())))]
    done = headwater("server", "adapters", "export", folder, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    loaded = PeftModel.from_pretrained(BertModel.from_pretrained(base), tmp_path / "out").state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize(
    "member",
    [
        ("../out", b"x"),
        ("/tmp/out", b"x"),
        ("a/../../out", b"x"),
        ("link", (tarfile.SYMTYPE, "/etc/passwd")),
        ("link", (tarfile.LNKTYPE, "a")),
        ("pipe", (tarfile.FIFOTYPE, "")),
        ("dev", (tarfile.CHRTYPE, "")),
    ],
    ids=repr,
)
def test_an_archive_with_anything_but_plain_files_is_refused(member, tmp_path):
    with pytest.raises(DecodeError):
        unpack([tar_of(("a", b"x"), member)], tmp_path / "in" / "adapter")
    assert list((tmp_path / "in").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("data", [b"", b"no tar", b"x" * 600, tar_of(("a", b"x" * 5000))[:2000], tar_of()])
def test_a_broken_archive_leaves_nothing(data, tmp_path):
    with pytest.raises(DecodeError):
        unpack([data], tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_off_leaves_nothing(tmp_path):
    def pieces():
        yield tar_of(("a", b"x"))[:512]
        raise StorageError("the daemon's disk")

    with pytest.raises(StorageError):
        unpack(pieces(), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []
