"""``headwater compress``, ``decompress``, ``inspect``, and ``merge`` of files, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from headwater.merging.offline.peft_folder import PeftFolder
from tests.support.command import headwater

from . import small


@pytest.fixture
def adapter(tmp_path):
    return small.lora(tmp_path / "adapter", head=True)


def test_there_and_back(adapter, tmp_path):
    done = headwater("compress", adapter, "-o", tmp_path / "a.hw", "--codec", "exact")
    assert done.code == 0, done.err
    assert "x smaller" in done.out
    done = headwater("decompress", tmp_path / "a.hw", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    before, after = PeftFolder.open(adapter), PeftFolder.open(tmp_path / "out")
    for module in before.modules:
        np.testing.assert_array_equal(*(np.matmul(*f.factors(module)) for f in (before, after)))


def test_compress_says_what_was_lost(adapter, tmp_path):
    losses = {}
    for density in (0.1, 0.5):
        done = headwater(
            "compress", adapter, "-o", tmp_path / f"{density}.hw", "--density", density, "--json"
        )
        told = json.loads(done.out)
        assert told["bytes"] == (tmp_path / f"{density}.hw").stat().st_size
        losses[density] = told["loss"]
    assert 0 < losses[0.5] < losses[0.1] < 1


def test_inspect_tells_the_same_of_a_folder_and_its_exact_file(adapter, tmp_path):
    headwater("compress", adapter, "-o", tmp_path / "a.hw", "--codec", "exact")
    of_folder, of_file = (
        json.loads(headwater("inspect", path, "--json").out) for path in (adapter, tmp_path / "a.hw")
    )
    for key in ("kind", "base", "values", "modules", "tensors"):
        assert of_folder[key] == of_file[key]
    assert of_folder["modules"][small.QUERY][:2] == [4, [16, 24]]
    product = np.matmul(*PeftFolder.open(adapter).factors(small.QUERY))
    assert of_folder["modules"][small.QUERY][2] == pytest.approx(np.linalg.norm(product))
    assert of_file["bytes"] == (tmp_path / "a.hw").stat().st_size


def test_inspect_shows_the_largest_first(adapter, tmp_path):
    headwater("compress", adapter, "-o", tmp_path / "a.hw", "--density", 0.3)
    done = headwater("inspect", tmp_path / "a.hw")
    norms = [float(line.rpartition("norm ")[2]) for line in done.out.splitlines() if ", norm " in line]
    assert norms == sorted(norms, reverse=True)
    assert "entropy bound" in done.out


def test_merge_takes_files(adapter, tmp_path):
    other = small.lora(tmp_path / "other", seed=1, head=True)
    headwater("compress", other, "-o", tmp_path / "b.hw")
    done = headwater("merge", adapter, tmp_path / "b.hw", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert PeftFolder.open(tmp_path / "out").modules
    assert "another way" not in done.out  # the notes of both say that rows are read alike
    assert headwater("merge", adapter, tmp_path / "b.hw", "--dry-run").code == 0


def test_an_origin_goes_through_every_verb(adapter, tmp_path):
    start, file = small.lora(tmp_path / "start", seed=1, head=True), tmp_path / "a.hw"
    assert headwater("compress", adapter, "-o", file, "--origin", start).code == 0
    assert "--origin" in headwater("inspect", file).error
    assert headwater("inspect", file, "--origin", start).code == 0
    assert headwater("decompress", file, "-o", tmp_path / "out", "--origin", start).code == 0
    done = headwater("merge", file, start, "-o", tmp_path / "merged", "--origin", start)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("options", "word", "code"),
    [
        (("--density", "0"), "--density", 2),
        (("--density", "nan"), "--density", 2),
        (("--codec", "exact", "--density", "0.1"), "--codec exact", 2),
    ],
)
def test_settings_that_do_not_fit_are_named(adapter, tmp_path, options, word, code):
    done = headwater("compress", adapter, "-o", tmp_path / "a.hw", *options)
    assert done.code == code
    assert word in done.error
    assert not (tmp_path / "a.hw").exists()


def test_what_is_there_is_kept(adapter, tmp_path):
    (tmp_path / "a.hw").write_text("mine")
    assert "--overwrite" in headwater("compress", adapter, "-o", tmp_path / "a.hw").error
    assert (tmp_path / "a.hw").read_text() == "mine"
    assert headwater("compress", adapter, "-o", tmp_path / "a.hw", "--overwrite").code == 0
    assert "--overwrite" in headwater("decompress", tmp_path / "a.hw", "-o", adapter).error


def test_a_damaged_file_is_refused_by_name(adapter, tmp_path):
    headwater("compress", adapter, "-o", tmp_path / "a.hw")
    data = bytearray((tmp_path / "a.hw").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.hw").write_bytes(bytes(data))
    done = headwater("decompress", tmp_path / "a.hw", "-o", tmp_path / "out")
    assert done.code == 6
    assert "a.hw" in done.error
    assert not (tmp_path / "out").exists()


def test_no_verb_loads_torch(adapter, tmp_path):
    code = (
        "import sys\nfrom headwater.cli.main import main\n"
        f"main(['compress', {str(adapter)!r}, '-o', {str(tmp_path / 'a.hw')!r}])\n"
        f"main(['inspect', {str(tmp_path / 'a.hw')!r}])\n"
        f"main(['decompress', {str(tmp_path / 'a.hw')!r}, '-o', {str(tmp_path / 'out')!r}])\n"
        f"main(['merge', {str(tmp_path / 'a.hw')!r}, '-o', {str(tmp_path / 'merged')!r}])\n"
        "print(sorted(m for m in ('torch', 'transformers', 'peft', 'flwr') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "merged" / "adapter_model.safetensors").exists()
