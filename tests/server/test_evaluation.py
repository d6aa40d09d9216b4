"""Best rounds, patience, pooling over clients."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.protocol.messages import Evaluation
from headwater.server.evaluation import Tracker, decisive, over_clients, per_client


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=20), st.sampled_from(["accuracy", "loss"]))
def test_tracker_finds_the_first_best(values, metric):
    tracker = Tracker(metric)
    for number, value in enumerate(values):
        tracker = tracker.after(number, value)
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        assert tracker.best_round is None
        return
    best = min(finite) if metric == "loss" else max(finite)
    assert tracker.best_value == best
    assert tracker.best_round == values.index(best)
    assert tracker.since == len(values) - 1 - tracker.best_round


def test_pooling_is_that_of_the_pooled_examples():
    rows = [
        Evaluation("a", 1, 10, {"accuracy": 0.5, "loss": 1.0, "perplexity": math.e}),
        Evaluation("b", 1, 30, {"accuracy": 1.0, "loss": 3.0, "perplexity": math.exp(3)}),
        Evaluation("c", 1, 0, {}),
    ]
    pooled = over_clients(rows)
    assert pooled["accuracy"] == pytest.approx(35 / 40)
    assert pooled["loss"] == pytest.approx(2.5)
    assert pooled["perplexity"] == pytest.approx(math.exp(2.5))
    assert over_clients(reversed(rows)) == pooled
    assert over_clients([]) == {}
    assert set(per_client(rows, 11)) == {"b"}


def test_the_server_file_decides_if_there_is_one():
    assert decisive("accuracy", {"accuracy": 0.7}, {"accuracy": 0.9}) == 0.7
    assert decisive("accuracy", None, {"accuracy": 0.9}) == 0.9
    assert math.isnan(decisive("accuracy", None, {}))
