"""edge.toml and [edges] of server.toml: what is read, and what is refused with file and key."""

from __future__ import annotations

import pytest

from headwater.cli.main import main
from headwater.config.daemon import check_daemon, daemon_toml, load_daemon
from headwater.config.edge import load_edge
from headwater.errors import ConfigError

GOOD = 'name = "edge-1"\nserver = "fl.example.org:8443"\n'


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "edge.toml").write_text(GOOD + "patience_s = 30\n")
    settings = load_edge(tmp_path / "edge.toml")
    assert settings.path(settings.file.clients) == tmp_path / "clients"
    assert settings.file.patience_s == 30.0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "name"),
        (GOOD.replace("edge-1", "edge 1"), "name"),
        (GOOD.replace(":8443", ""), "server"),
        (GOOD + "patience_s = 0\n", "patience_s"),
        (GOOD + "port = 1\n", "port"),
        ("name = ", "edge file"),
    ],
)
def test_what_is_wrong_is_told_by_key(tmp_path, text, key):
    (tmp_path / "edge.toml").write_text(text)
    with pytest.raises(ConfigError, match=key):
        load_edge(tmp_path / "edge.toml")
    with pytest.raises(ConfigError, match="nothing there"):
        load_edge(tmp_path / "none.toml")


def test_enrolling_again_keeps_the_keys(tmp_path, capsys):
    file = tmp_path / "edge.toml"
    file.write_text(GOOD)
    assert main(["aggregate", str(file), "--enroll"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert "[edges] edge-1 = 100" in first[-1]
    assert main(["aggregate", str(file), "--enroll"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == first[1:]  # the same keys, signed anew
    file.write_text(GOOD.replace("edge-1", "edge-2"))
    assert main(["aggregate", str(file), "--enroll"]) == ConfigError.exit_code
    assert "edge-1" in capsys.readouterr().err


def test_edges_are_named_in_the_servers_file(tmp_path):
    raw = {"name": "t", "listen": {"names": ["localhost"]}}
    settings = check_daemon({**raw, "edges": {"edge-1": 10, "b.c": 2}}, "t")
    (tmp_path / "server.toml").write_text(daemon_toml(settings))
    assert load_daemon(tmp_path / "server.toml") == settings
    assert "[edges]" not in daemon_toml(check_daemon(raw, "t"))
    with pytest.raises(ConfigError, match="edges"):
        check_daemon({**raw, "edges": {"edge-1": 0}}, "t")
