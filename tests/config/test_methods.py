"""Which methods a federation file may offer, together and to whom."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from headwater.config.agent import AgentFile
from headwater.config.federation import Federation
from tests.strategies.test_federated import federation

KSEED = {"kind": "kseed"}
SHARES = {"kind": "shares", "shares": {"default": 0.5, "m": 0.5}}


def with_method(training: dict[str, Any], /, **tables: Any) -> Federation:
    method = {"training": training, **tables.pop("method", {})}
    return federation(**{"methods": {"m": method}, "assignment": SHARES, **tables})


def refused(match: str, build: Any, *args: Any, **tables: Any) -> None:
    with pytest.raises(ValidationError, match=match):
        build(*args, **tables)


@pytest.mark.parametrize(
    "training",
    [
        {"kind": "forward_gradient"},
        {"kind": "spry"},
        {"kind": "mezo"},
        KSEED,
        {"kind": "decomfl"},
        {"kind": "backprop", "learning_rate": 0.5},
    ],
)
def test_every_method_goes_with_backprop(training: dict[str, Any]) -> None:
    assert set(with_method(training).trainings) == {"default", "m"}
    assert federation(training=training).trainings.keys() == {"default"}


def test_methods_need_somebody_to_use_them_and_names_that_exist() -> None:
    refused("nobody would use", federation, methods={"m": {"training": KSEED}})
    for table in (
        {"kind": "shares", "shares": {"x": 1.0}},
        {"kind": "clients", "clients": {"*": "x"}},
        {"kind": "planner", "prefer": ["x"]},
    ):
        refused("no method 'x'; there are default", federation, assignment=table)
    for name in ("default", "a b", "1", ""):
        refused("a name of letters", federation, methods={name: {"training": KSEED}}, assignment=SHARES)
    for names in (["m" * 65], [f"m{i}" for i in range(64)]):
        methods = {name: {"training": KSEED} for name in names}
        refused(
            "fewer than 64", federation, methods=methods, assignment={**SHARES, "shares": {"default": 1.0}}
        )


@pytest.mark.parametrize("shares", [{"default": 0.5}, {"default": 1.5, "m": -0.5}])
def test_shares_are_fractions_of_everybody(shares: dict[str, float]) -> None:
    refused("sum up to 1", with_method, KSEED, assignment={"kind": "shares", "shares": shares})


@pytest.mark.parametrize("strategy", ["ties", "fisher"])
@pytest.mark.parametrize(
    "method",
    [{"training": KSEED}, {"training": {"kind": "spry"}}, {"training": {"kind": "backprop"}, "rank": 2}],
)
def test_scalars_and_parts_of_the_adapter_need_the_mean(strategy: str, method: dict[str, Any]) -> None:
    tables: dict[str, Any] = {"methods": {"m": method}, "assignment": SHARES, "strategy": {"kind": strategy}}
    refused("need strategy 'mean'", federation, **tables)


def test_a_median_takes_parts_and_no_scalars() -> None:
    median = {"kind": "median"}
    for method in ({"training": {"kind": "spry"}}, {"training": {"kind": "backprop"}, "rank": 2}):
        federation(methods={"m": method}, assignment=SHARES, strategy=median)
    refused("need strategy 'mean'", federation, training=KSEED, strategy=median)


def test_fisher_needs_gradients_and_ties_does_not() -> None:
    refused("needs gradients", federation, training={"kind": "mezo"}, strategy={"kind": "fisher"})
    federation(training={"kind": "mezo"}, strategy={"kind": "ties"})


@pytest.mark.parametrize("kind", ["spry", "decomfl"])
def test_methods_of_rounds_have_no_buffer(kind: str) -> None:
    refused("needs rounds", with_method, {"kind": kind}, schedule={"kind": "buffered", "buffer": 1})


def test_seeds_move_the_whole_adapter_and_are_bounded_by_themselves() -> None:
    for part in ({"rank": 2}, {"last_layers": 1}):
        refused("no rank, no last_layers", with_method, KSEED, method=part)
    refused("gradient_bound instead", with_method, KSEED, privacy={"clip_l2": 1.0})
    with_method({"kind": "mezo"}, privacy={"clip_l2": 1.0})


@pytest.mark.parametrize(
    "change", [{"seeds": 64}, {"learning_rate": 1.0}, {"gradient_bound": 1.0}, {"distribution": "gaussian"}]
)
def test_one_set_of_seeds_serves_a_round(change: dict[str, Any]) -> None:
    refused("one set of seeds", with_method, {**KSEED, **change}, training=KSEED)


def test_kseed_clients_may_take_different_steps() -> None:
    with_method({**KSEED, "max_steps": 3, "epsilon": 0.5, "batch_size": 2}, training=KSEED)
    decomfl = {"kind": "decomfl"}
    refused("one set of seeds", with_method, {**decomfl, "max_steps": 3}, training=decomfl)
    refused("one set of seeds", with_method, decomfl, training=KSEED)
    with_method({**decomfl, "max_steps": 127, "directions": 1024})
    refused("below 131,072", with_method, {**decomfl, "max_steps": 128, "directions": 1024})


PROMPT = {"kind": "prompt", "tokens": 4}


def test_parts_that_the_adapter_does_not_have() -> None:
    federation(training={"kind": "blackbox"}, adapter=PROMPT)
    refused("soft prompt", federation, training={"kind": "blackbox"})
    refused("splits layers", federation, training={"kind": "spry"}, adapter=PROMPT)
    refused("last_layers needs", with_method, {"kind": "mezo"}, adapter=PROMPT, method={"last_layers": 1})
    refused("needs LoRA", with_method, {"kind": "mezo"}, adapter=PROMPT, method={"rank": 1})
    refused("at least that rank", with_method, {"kind": "mezo"}, method={"rank": 9})
    with_method({"kind": "mezo"}, method={"rank": 8, "last_layers": 3})


@pytest.mark.parametrize("training", [{"kind": "kseed"}, {"kind": "decomfl"}])
def test_a_step_that_no_unit_can_hold(training: dict[str, Any]) -> None:
    for rate in (1e-16, 1e6):
        refused("largest step", federation, training={**training, "learning_rate": rate})
    federation(training={**training, "learning_rate": 1e-9})


def test_the_noop_goes_alone() -> None:
    refused("goes with no other method", with_method, KSEED, training={"kind": "noop"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("pro", True), ("seeds", 64), ("learning_rate", 0.5), ("gradient_bound", 2.0), ("kind", "decomfl")],
)
def test_the_setting_that_two_methods_along_seeds_must_share_is_named(name: str, value: Any) -> None:
    methods = {"a": {"training": KSEED}, "b": {"training": {**KSEED, name: value}}}
    shares = {"kind": "shares", "shares": {"a": 0.5, "b": 0.5}}
    refused(f"must have the same {name}:", federation, methods=methods, assignment=shares)


def test_sizes_that_no_machine_has_are_refused_here() -> None:
    """Later they were a traceback, or a client's fault."""
    refused("batch_size", federation, training={"kind": "backprop", "batch_size": 2**20 + 1})
    refused("batch_size", federation, evaluation={"batch_size": 2**20 + 1})
    device = {"share": 1.0, "memory_mb": 2**30 + 1}
    refused("memory_mb", federation, assignment={"kind": "planner", "devices": {"d": device}})
    with pytest.raises(ValidationError, match="simulated_memory_mb"):
        AgentFile.model_validate(
            {"name": "a", "server": "s:1", "data": {"path": "x"}, "simulated_memory_mb": 2**30 + 1}
        )
