"""The schedule and the cohort of a federation file."""

from __future__ import annotations

import pytest
import tomli_w

from headwater.config import load_federation
from headwater.errors import ConfigError
from tests.config.test_load import GOOD

LINK = "simulation.devices.upload_bps=1e6"


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(tomli_w.dumps(GOOD))
    return lambda *overrides: load_federation(path, overrides).settings


def test_rounds_are_synchronous_unless_the_file_says_otherwise(load):
    assert load().schedule.kind == "synchronous"
    schedule = load("schedule.kind=buffered", "schedule.buffer=4").schedule
    assert (schedule.buffer, schedule.staleness_exponent, schedule.max_staleness) == (4, 0.5, 20)


@pytest.mark.parametrize(
    "overrides",
    [
        ("cohort.target_clients=2", "cohort.min_clients=2", "cohort.clients_per_round=2"),
        ("cohort.target_clients=5",),
        ("schedule.kind=buffered", "schedule.buffer=3", "cohort.min_clients=3"),
        # so many at once, one after the other: fewer than make a version
        ("schedule.kind=buffered", "schedule.buffer=3", "cohort.min_clients=3", "cohort.clients_per_round=1"),
        ("cohort.upload_s=9", "cohort.deadline_s=9", LINK),
        ("cohort.upload_s=9", "simulation.devices.trace=devices.csv"),
        ("cohort.upload_s=9",),  # a server measures links
    ],
)
def test_what_fits_is_taken(load, overrides):
    load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (
            ("cohort.target_clients=1", "cohort.min_clients=2"),
            "target_clients 1 is below cohort.min_clients 2",
        ),
        (("cohort.target_clients=4", "cohort.clients_per_round=3"), "target_clients 4 is above"),
        (("cohort.min_clients=4", "cohort.clients_per_round=3"), "clients_per_round 3 is below"),
        (("schedule.kind=buffered", "schedule.buffer=2", "cohort.target_clients=2"), "set schedule.buffer"),
        (("schedule.kind=buffered", "schedule.buffer=2", "cohort.min_clients=3"), "above schedule.buffer 2"),
        (("schedule.kind=buffered",), "schedule.buffer"),
        (("schedule.kind=buffered", "schedule.buffer=0"), "schedule.buffer"),
        (("schedule.kind=synchronous", "schedule.buffer=2"), "schedule.buffer"),
        (("schedule.kind=buffered", "schedule.buffer=2", "schedule.max_staleness=-1"), "max_staleness"),
        (("cohort.retry_s=0",), "cohort.retry_s"),
        (("cohort.upload_s=0", LINK), "cohort.upload_s"),
        (("cohort.upload_s=9", LINK, "schedule.kind=buffered", "schedule.buffer=2"), "upload_s needs rounds"),
        (("cohort.upload_s=9", LINK, "cohort.deadline_s=8"), "9 is above cohort.deadline_s 8"),
        (("cohort.upload_s=9", LINK, "codec.up.kind=topk"), "needs codec.up 'compeft' in format 2"),
        (
            ("cohort.upload_s=9", LINK, "codec.up.kind=compeft", "codec.up.format=1"),
            "needs codec.up 'compeft' in format 2",
        ),
        (
            ("cohort.upload_s=9", LINK, "codec.up.kind=compeft", "codec.up.alpha=1.0"),
            "needs codec.up 'compeft' in format 2",
        ),
        (("cohort.upload_s=9", LINK, "training.kind=kseed"), "sends coefficients"),
    ],
)
def test_what_does_not_fit_is_named(load, overrides, wrong):
    with pytest.raises(ConfigError, match=wrong):
        load(*overrides)
