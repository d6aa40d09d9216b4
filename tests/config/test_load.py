"""The federation file: what is right passes, what is wrong is named, and torch stays out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tomli_w

from headwater.config import load_federation
from headwater.config.codec import DenseCodec
from headwater.errors import ConfigError

GOOD = {
    "federation": {"name": "t", "rounds": 2, "seed": 3},
    "model": {"kind": "encoder", "path": "base"},
    "adapter": {"kind": "lora"},
    "data": {
        "kind": "classification",
        "path": "d.jsonl",
        "labels": ["a", "b"],
        "partition": {"kind": "iid", "clients": 2},
    },
    "training": {"kind": "backprop"},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(tomli_w.dumps(GOOD))
    return path


def test_defaults_are_filled_and_survive_a_second_reading(file, tmp_path):
    loaded = load_federation(file)
    assert loaded.settings.codec.up.kind == "compeft"
    assert loaded.settings.strategy.kind == "mean"
    again = tmp_path / "resolved.toml"
    again.write_text(loaded.to_toml())
    assert load_federation(again) == loaded
    assert load_federation(again).sha256() == loaded.sha256()
    assert loaded.sha256() in loaded.to_toml()


def test_hash_covers_everything_but_the_seed(file):
    one = load_federation(file)
    assert load_federation(file, seed=99).sha256() == one.sha256()
    assert load_federation(file, seed=99).settings.federation.seed == 99
    assert load_federation(file, ["training.batch_size=3"]).sha256() != one.sha256()


def test_overrides(file):
    loaded = load_federation(
        file, ["federation.rounds=7", "strategy.kind=ties", 'model.path="other"', "data.labels=['x','y']"]
    )
    assert loaded.settings.federation.rounds == 7
    assert loaded.settings.strategy.kind == "ties"
    assert loaded.settings.strategy.space == "ffa"
    assert loaded.settings.model.path == "other"
    assert loaded.settings.data.labels == ("x", "y")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["federation.roundz=3"], r"federation\.roundz: expected no such key, got 3\. Check its spelling"),
        (["federation.rounds=two"], r"federation\.rounds: .*integer, got 'two'"),
        (["federation.rounds=1.5"], r"federation\.rounds"),
        (["federation.rounds=0"], r"federation\.rounds: .*greater than or equal to 1, got 0"),
        (["training.learning_rate=-1"], r"training\.learning_rate: .*greater than 0, got -1"),
        (["model.kind=decoder"], "model: expected .kind. out of .encoder., .*, got .decoder."),
        (["model.sha256=abc"], r"model\..*sha256"),
        (["data.labels=['one']"], r"data\..*labels"),
        (["strategy.kind=ties", "strategy.space=factors"], "noise of the basis"),
        (["strategy.kind=fisher", "strategy.space=factors"], "allow_factors"),
        (["model.kind=causal-lm"], "does not fit"),
        (["adapter.kind=prompt", "strategy.kind=mean", "strategy.space=ffa"], "freezes LoRA's A"),
        (["training.kind=3"], r"training\.kind: expected one of .*'spry'.*got '3'"),
        (["federation.rounds"], "table.key=value"),
        (["federation.name.x=1"], "to be a table"),
    ],
)
def test_what_is_wrong_is_named(file, overrides, match):
    with pytest.raises(ConfigError, match=match) as caught:
        load_federation(file, overrides)
    assert str(file) in str(caught.value) or "--set" in str(caught.value)


def test_allow_factors_is_an_answer(file):
    loaded = load_federation(
        file, ["strategy.kind=ties", "strategy.space=factors", "strategy.allow_factors=true"]
    )
    assert loaded.settings.strategy.space == "factors"


@pytest.mark.parametrize("content", [b"[federation", b"\xff\xfe", b""])
def test_broken_files(tmp_path, content):
    path = tmp_path / "f.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"f\.toml"):
        load_federation(path)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="nothing there"):
        load_federation(tmp_path / "none.toml")


def test_missing_adapter(file):
    text = file.read_text().replace("[adapter]", "[baselines]").replace('kind = "lora"', "alone = false")
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"\[adapter\] is missing"):
        load_federation(file)


@pytest.mark.parametrize("arguments", [["--help"], ["config", "check", "FILE"]])
def test_light_commands_import_no_torch(file, arguments):
    arguments = [str(file) if a == "FILE" else a for a in arguments]
    code = (
        "import sys\n"
        "from headwater.cli.main import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        "heavy = {'torch', 'numpy', 'flwr', 'transformers', 'peft'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout


def test_a_compressed_way_down_is_the_servers_business(file):
    """Devices one version behind, which know a dense one only, can read what they are told."""
    sparse = load_federation(file, ['codec.down={ kind = "compeft", density = 0.02 }']).settings
    assert sparse.codec.down.density == 0.02
    assert json.loads(sparse.told_to_devices())["codec"]["down"] == {"kind": "dense", "dtype": "fp32"}
    bf16 = load_federation(file, ['codec.down={ dtype = "bf16" }']).settings  # without a kind, as before
    assert bf16.codec.down == DenseCodec(kind="dense", dtype="bf16")
    modules = 'modules = [{ pattern = "*", codec = { kind = "stc", density = 0.5 } }]'
    both = [f'codec.{way}={{ kind = "by-module", {modules} }}' for way in ("up", "down")]
    codec = load_federation(file, both).settings.codec
    assert codec.down == codec.up
    for refused in (
        '{ kind = "randk", places = "00" }',
        '{ kind = "topk", keep_rounds = 3 }',
        '{ kind = "dense", error_feedback = true }',
    ):
        with pytest.raises(ConfigError):
            load_federation(file, [f"codec.down={refused}"])
