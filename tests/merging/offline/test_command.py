"""``headwater merge`` as a process: what it loads, how it ends, and that Python's call gives its bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import headwater
from tests.merging.offline.small_adapters import MODULES, WEIGHTS, adapter, edit

MERGE = (sys.executable, "-m", "headwater", "merge")


def merge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run([*MERGE, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    return [adapter(tmp_path / "a", 1, rank=2), adapter(tmp_path / "b", 2, rank=3)]


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ((), {}),
        (("--rule", "ties", "--density", "0.5"), {"rule": "ties", "density": 0.5}),
        (("--rule", "dare_linear", "--seed", "3"), {"rule": "dare_linear", "seed": 3}),
        (("--weights", "2,1", "--rank", "1"), {"weights": [2, 1], "rank": 1}),
        (("--energy", "0.9", "--scale", "1.5"), {"energy": 0.9, "scale": 1.5}),
        (("--space", "stack"), {"space": "stack"}),
    ],
)
def test_the_command_and_the_call_give_the_same_bytes(pair, tmp_path, options, keywords):
    done = merge(*pair, "-o", tmp_path / "one", *options)
    assert done.returncode == 0, done.stderr
    headwater.merge(list(map(str, pair)), str(tmp_path / "two"), **keywords)
    for name in (WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_heavy_is_loaded(pair, tmp_path):
    code = (
        "import sys; from headwater.cli.main import main; assert main(sys.argv[1:]) == 0; "
        "print({m for m in ('torch', 'peft', 'transformers', 'flwr', 'scipy') if m in sys.modules})"
    )
    arguments = ["merge", *map(str, pair), "-o", str(tmp_path / "out"), "--rule", "ties"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_cosine_that_is_none_is_null_for_programs(pair, tmp_path):
    """Of an adapter that changes nothing; JSON has no NaN."""
    still = adapter(tmp_path / "still", 3)
    edit(still, **{f"{module}.lora_B.weight": np.zeros((6, 2), "<f4") for module in MODULES})
    done = merge(pair[0], still, "--dry-run", "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["norms"][1] == 0
    assert found["cosines"][0][1] is None
    assert found["cosines"][0][0] == pytest.approx(1)


def test_the_dry_run_compares_and_writes_nothing(pair, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = merge(*pair, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert told["adapters"] == list(map(str, pair))
    assert told["ranks"] == [2, 3]
    assert told["cosines"][0][0] == pytest.approx(1)
    assert told["notes"] == []
    assert sorted(tmp_path.rglob("*")) == before
    twin = adapter(tmp_path / "twin", 1, rank=2)
    assert "note: " in merge(pair[0], twin, "--dry-run").stdout
    assert f"[1] {pair[0]}: norm" in merge(*pair, "--dry-run").stdout


def test_codes_of_the_end_are_those_of_the_errors(pair, tmp_path):
    assert merge(*pair).returncode == 2
    assert merge(*pair, "-o", tmp_path / "out", "--rule", "none").returncode == 2
    assert merge(pair[0], tmp_path / "none", "-o", tmp_path / "out").returncode == 11
    other = adapter(tmp_path / "c", 3, rows=9)
    done = merge(*pair, other, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"headwater: error HW04: {other}: expected the shape")
    (other / WEIGHTS).write_bytes(b"")
    assert merge(*pair, other, "-o", tmp_path / "out").returncode == 6
    assert not (tmp_path / "out").exists()


SLOWED = """
import sys
from headwater.merging.offline import folder
add = folder.TensorWriter.add
def announced(self, name, values):
    add(self, name, values)
    print("wrote", name, flush=True)
    sys.stdin.readline()  # until the signal
folder.TensorWriter.add = announced
from headwater.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, which stands still after its first tensor."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_signal_leaves_nothing_half_written(pair, tmp_path, number, code, overwrite):
    out = tmp_path / "out"
    if overwrite:
        adapter(out, 9)
        before = (out / WEIGHTS).read_bytes()
    arguments = ["merge", *map(str, pair), "-o", str(out), *(["--overwrite"] if overwrite else [])]
    with subprocess.Popen(
        [sys.executable, "-c", SLOWED, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("wrote base_model.model.layers.0.q_proj.lora_A")
        assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
        process.send_signal(number)
        process.wait()
        assert process.returncode == code, process.stderr.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", *(["out"] if overwrite else [])]
    assert not overwrite or (out / WEIGHTS).read_bytes() == before


def test_what_a_killed_merge_left_is_cleared_by_the_next(pair, tmp_path):
    arguments = ["merge", *map(str, pair), "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", SLOWED, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.kill()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert merge(*pair, "-o", tmp_path / "out").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


MEASURED = """
import resource, sys
from headwater.cli.main import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(folders: list[Path], out: Path) -> int:
    """Peak resident memory of a process that merges, KiB."""
    arguments = ["merge", *map(str, folders), "-o", str(out), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_number_of_adapters(tmp_path):
    modules = [f"layers.{layer}.{name}" for layer in range(6) for name in ("q_proj", "v_proj")]
    folders = [
        adapter(tmp_path / str(seed), seed, modules=modules, rows=256, columns=256, rank=8)
        for seed in range(120)
    ]
    few, many = peak_kib(folders[:40], tmp_path / "few"), peak_kib(folders, tmp_path / "many")
    read = sum((folder / WEIGHTS).stat().st_size for folder in folders[40:]) / 1024
    # of 15 MB more that are read, nearly nothing stays: a file's names, shapes and places
    assert many - few < 0.25 * read, (few, many, read)
