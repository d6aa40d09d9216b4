"""The scrape, read back by prometheus_client's own parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from headwater.server.monitoring.prometheus import CONTENT_TYPE, exposition
from tests.support.organisers import RUN, ToyOrganiser


@pytest.fixture
def samples(tmp_path):
    toy = ToyOrganiser(tmp_path, ('ann "quoted" \\ back', "ben\nnew line", "cleo"))
    toy.begin(5)
    toy.end_round(1, 0.75, {"cleo": "late"})
    toy.monitor.refused("unknown key", count=7)
    text = exposition(toy.status()).decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_every_number_of_the_status_is_there(samples):
    assert samples["headwater_run_round", (("run", RUN),)] == 1
    assert samples["headwater_run_rounds", (("run", RUN),)] == 5
    assert samples["headwater_run_metric", (("metric", "accuracy"), ("run", RUN))] == 0.75
    assert samples["headwater_refused_total", (("reason", "unknown key"),)] == 7
    assert samples["headwater_clients", (("state", "online"),)] == 3
    assert samples["headwater_client_rounds_total", (("client", "cleo"), ("result", "failed"))] == 1
    assert samples["headwater_run_bytes_total", (("direction", "down"), ("run", RUN))] == 135_000
    assert samples["headwater_info", (("version", "0.1.0"),)] == 1
    states = {k[1][2][1]: v for k, v in samples.items() if k[0] == "headwater_run_state"}
    assert states["running"] == 1
    assert sum(states.values()) == 1


def test_hostile_names_stay_within_their_label(samples):
    clients = {dict(labels)["client"] for name, labels in samples if name == "headwater_client_online"}
    assert clients == {'ann "quoted" \\ back', "ben\nnew line", "cleo"}


def test_what_is_not_known_is_left_out(tmp_path):
    toy = ToyOrganiser(tmp_path)
    toy.monitor.run_queued(RUN, "x", 3, metric="loss")
    text = exposition(toy.status()).decode()
    assert "NaN" not in text
    assert f'headwater_run_metric{{metric="loss",run="{RUN}"}}' not in text


def test_the_process_wide_registry_is_left_alone(tmp_path):
    before = set(REGISTRY._names_to_collectors)
    exposition(ToyOrganiser(tmp_path).status())
    exposition(ToyOrganiser(tmp_path).status())
    assert set(REGISTRY._names_to_collectors) == before
    assert CONTENT_TYPE.startswith("text/plain")


def test_the_guide_lists_every_metric(samples):
    page = (Path(__file__).parents[3] / "docs/guides/watching.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^- `(headwater_\w+)`(?: \(([^)]*)\))?: ", page, re.MULTILINE))
    assert listed.keys() == {name for name, _ in samples}
    for name, labels in samples:
        assert {key for key, _ in labels} == set(filter(None, listed[name].split(", "))), name
