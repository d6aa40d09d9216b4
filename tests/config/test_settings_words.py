"""What is wrong with a settings file is said as a sentence, whichever check found it."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.config.daemon import check_daemon
from headwater.errors import ConfigError
from tests.support.federation_text import federation_text

FEDERATION = federation_text(rounds=3, training="backprop")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("federation.rounds=0", "federation.rounds: expected a number greater than or equal to 1, got 0"),
        ('federation.rounds="x"', "federation.rounds: expected a valid integer, got 'x'"),
        ('federation.name=""', "federation.name: expected a text with at least 1 character, got ''"),
        (
            "cohort={target_clients=4,clients_per_round=3}",
            "(file): expected settings that fit together, "
            "got cohort.target_clients 4 is above cohort.clients_per_round 3",
        ),
        ("model.path=<the model>", "model.path: expected the model, got the template's place for it"),
        ("data.test=<the test>", "data.test: expected the test, got the template's place for it"),
    ],
)
def test_a_federation_file(tmp_path, change, words):
    file = tmp_path / "f.toml"
    file.write_text(FEDERATION)
    with pytest.raises(ConfigError) as caught:
        load_federation(file, [change])
    assert f"{file}: {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"fleet": "x"},
            "listen.fleet: expected HOST:PORT, for example 127.0.0.1:8443 or [::1]:8443, got",
        ),
        ({"names": []}, "listen.names: expected a list with at least 1 item after validation, not 0"),
    ],
)
def test_a_server_file(table, words):
    with pytest.raises(ConfigError) as caught:
        check_daemon({"name": "n", "listen": {"names": ["localhost"], **table}}, "server.toml")
    assert f"server.toml: {words}" in str(caught.value)
