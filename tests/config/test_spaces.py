"""What a space goes with."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.strategies.test_federated import federation

DENSE = {"up": {"kind": "dense"}}
PAIRS = ("rolora", "product", "fair")


def settings(space: str, /, strategy: dict[str, Any] | None = None, **tables: Any) -> dict[str, Any]:
    return {"codec": DENSE, "strategy": {"kind": "mean", "space": space, **(strategy or {})}, **tables}


@pytest.mark.parametrize("space", PAIRS)
def test_pairs_of_factors_are_merged_in_rounds_and_from_deltas(space: str) -> None:
    federation(**settings(space))
    federation(**settings(space, training={"kind": "mezo"}))
    for match, tables in (
        ("merges pairs of factors: .* of kind 'prompt'", {"adapter": {"kind": "prompt"}}),
        ("'kseed' sends coefficients of seeds", {"training": {"kind": "kseed"}}),
        ("needs rounds", {"schedule": {"kind": "buffered", "buffer": 2}}),
    ):
        with pytest.raises(ValidationError, match=match):
            federation(**settings(space, **tables))


@pytest.mark.parametrize("space", ["product", "fair"])
def test_nothing_is_kept_in_the_coordinates_of_factors_that_the_merge_turns(space: str) -> None:
    for match, tables in (
        ("server's momentum or rate", {"strategy": {"server_momentum": 0.5}}),
        ("server's momentum or rate", {"strategy": {"server_learning_rate": 0.5}}),
        ("error feedback", {"codec": {"up": {"kind": "compeft"}}}),
    ):
        with pytest.raises(ValidationError, match=match):
            federation(**settings(space, **tables))
        merged = dict(settings("rolora", **tables))
        federation(**merged)
    federation(**settings(space, codec={"up": {"kind": "compeft", "error_feedback": False}}))


def test_methods_are_not_weighed_where_products_are_merged() -> None:
    assert federation(**settings("rolora")).strategy.weighs_methods()
    assert not federation(**settings("product")).strategy.weighs_methods()


def test_weights_of_ranks_are_of_products() -> None:
    federation(**settings("product", {"rank_weights": "all"}))
    with pytest.raises(ValidationError, match='rank_weights = "all" is for space "product"'):
        federation(**settings("factors", {"rank_weights": "all"}))


def test_a_median_alternates_too_but_merges_no_products() -> None:
    assert federation(strategy={"kind": "median", "space": "rolora"}).strategy.alternates
    for kind, space in (("median", "product"), ("ties", "rolora")):
        with pytest.raises(ValidationError, match="Input should be 'factors'"):
            federation(strategy={"kind": kind, "space": space})
