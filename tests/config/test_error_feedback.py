"""What EF21 goes with: every update must count once, whole, and the same."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.strategies.test_federated import federation

SUM = {"codec": {"up": {"kind": "topk", "error_feedback": "ef21"}}}
EQUAL = {"strategy": {"kind": "mean", "weighting": "equal"}}


def test_ef21_goes_with_equal_weights_in_rounds() -> None:
    assert federation(**SUM, **EQUAL).codec.up.shifts
    assert not federation(**EQUAL).codec.up.shifts


@pytest.mark.parametrize(
    ("match", "tables"),
    [
        ("other rules' results are no sum", {"strategy": {"kind": "ties"}}),
        ("examples may change", {"strategy": {"kind": "mean"}}),
        ("would count less", {**EQUAL, "schedule": {"kind": "buffered", "buffer": 2}}),
        ("added value by value", {"strategy": {"kind": "mean", "weighting": "equal", "space": "rolora"}}),
        ("missing for ever", {"strategy": {"kind": "mean", "weighting": "equal", "norm_bound": 1.0}}),
        ("missing for ever", {**EQUAL, "privacy": {"clip_l2": 1.0}}),
        ("one method for all", {**EQUAL, "training": {"kind": "kseed"}}),
        ("one method for all", {**EQUAL, "training": {"kind": "spry"}}),
    ],
)
def test_what_would_let_server_and_clients_add_up_different_sums_is_refused(
    match: str, tables: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=match):
        federation(**SUM, **tables)


@pytest.mark.parametrize("own", [{"error_feedback": "ef21"}, {"keep_rounds": 2}])
def test_the_servers_own_feedback_neither_shifts_nor_is_away(own: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"codec\.down"):
        federation(codec={"down": {"kind": "topk", **own}})


def test_the_servers_own_feedback_may_fade() -> None:
    assert federation(codec={"down": {"kind": "topk", "decay": 0.9}}).codec.down.fading() == (0.9, None)


@pytest.mark.parametrize("form", ["ef22", 1, []])
def test_a_form_that_there_is_not_is_told_with_those_that_there_are(form: object) -> None:
    with pytest.raises(ValidationError, match="true, false, 'ef14' or 'ef21'"):
        federation(codec={"up": {"kind": "topk", "error_feedback": form}})
