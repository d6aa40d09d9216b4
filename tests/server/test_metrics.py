"""Best rounds, patience, pooling over clients."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config import Federation
from headwater.errors import DecodeError
from headwater.protocol.messages import ClientProfile, Evaluation
from headwater.server.metrics import Tracker, checked, decisive, over_clients, per_client


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
    later = values[tracker.best_round + 1 :]
    assert tracker.since == sum(math.isfinite(v) for v in later)  # what measured nothing does not count


def test_pooling_is_that_of_the_pooled_examples():
    rows = [
        Evaluation("a", 1, 10, {"accuracy": 0.5, "loss": 1.0}),
        Evaluation("b", 1, 30, {"accuracy": 1.0, "loss": 3.0}),
        Evaluation("c", 1, 0, {}),
    ]
    pooled = over_clients(rows, FEDERATION.data)
    assert pooled["accuracy"] == pytest.approx(35 / 40)
    assert pooled["loss"] == pytest.approx(2.5)
    assert over_clients(reversed(rows), FEDERATION.data) == pooled
    assert over_clients([], FEDERATION.data) == {}
    profiles = {
        name: ClientProfile(name, 1, n, "0" * 64, "1" * 64) for name, n in (("a", 10), ("b", 30), ("c", 0))
    }
    assert set(per_client(rows, profiles, 11)) == {"b"}
    texts = [
        Evaluation("a", 1, 10, {"loss": 1.0, "perplexity": math.e}),
        Evaluation("b", 1, 30, {"loss": 3.0, "perplexity": math.exp(3)}),
    ]
    assert over_clients(texts, CAUSAL.data)["perplexity"] == pytest.approx(math.exp(2.5))


def test_the_server_file_decides_if_there_is_one():
    assert decisive("accuracy", {"accuracy": 0.7}, {"accuracy": 0.9}) == 0.7
    assert decisive("accuracy", None, {"accuracy": 0.9}) == 0.9
    assert math.isnan(decisive("accuracy", None, {}))


def federation_of(kind):
    data = {"path": "x", "partition": {"kind": "iid", "clients": 2}, "kind": "causal-lm"}
    if kind == "encoder":
        data |= {"kind": "classification", "labels": ("a", "b")}
    return Federation.model_validate(
        {
            "federation": {"name": "t", "rounds": 1},
            "model": {"kind": kind, "path": "m"},
            "adapter": {"kind": "lora"},
            "data": data,
            "training": {"kind": "backprop"},
        }
    )


def profile(examples):
    return ClientProfile("a", 5, examples, "0" * 64, "1" * 64)


FEDERATION = federation_of("encoder")
CAUSAL = federation_of("causal-lm")


def test_what_a_client_may_have_measured_passes():
    right = Evaluation("a", 1, 10, {"accuracy": 0.5, "macro_f1": 1.0, "loss": 0.0})
    assert checked(right, profile(10), FEDERATION) is right
    windows = Evaluation("a", 1, 77, {"loss": 2.0, "perplexity": math.exp(2)})
    assert checked(windows, profile(3), CAUSAL) is windows


GOOD = {"accuracy": 0.5, "macro_f1": 0.5, "loss": 1.0}


@pytest.mark.parametrize(
    ("examples", "metrics", "match"),
    [
        (10, {}, "metrics"),
        (10, {**GOOD, "bytes_up": 1.0}, "metrics"),
        (10, {**GOOD, "accuracy": 9e9}, "accuracy"),
        (10, {**GOOD, "loss": 1.7e308}, "loss"),
        (10, {**GOOD, "loss": -1.0}, "loss"),
        (10, {**GOOD, "macro_f1": math.nan}, "macro_f1"),
        (2**32, GOOD, "10 examples"),
        (9, GOOD, "10 examples"),
    ],
)
def test_what_a_client_cannot_have_measured_is_refused(examples, metrics, match):
    """Else one client could take a metric away from all, dictate it, or overflow a sum."""
    with pytest.raises(DecodeError, match=match):
        checked(Evaluation("a", 1, examples, metrics), profile(10), FEDERATION)


def test_a_causal_client_cannot_claim_more_tokens_than_its_windows_hold():
    with pytest.raises(DecodeError, match="384 examples"):
        checked(Evaluation("a", 1, 385, {"loss": 2.0, "perplexity": 7.0}), profile(3), CAUSAL)
