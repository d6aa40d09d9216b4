"""What ``strategy.weighting = "targets"`` goes with."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from headwater.errors import ConfigError
from headwater.flower_strategy.settings import read_tables
from tests.strategies.test_federated import federation

TARGETS = {"kind": "mean", "weighting": "targets"}


@pytest.mark.parametrize(
    ("match", "tables"),
    [
        ("no control variates", {"strategy": TARGETS | {"control_variates": True}}),
        (
            "would be told",
            {"training": {"kind": "backprop", "privacy": {"noise_multiplier": 1, "delta": 1e-5}}},
        ),
        ("rows stay as they are", {"simulation": {"devices": {"tokens_per_s": 1, "start_rows": 1}}}),
        ("rows that Headwater reads", {"training": {"kind": "script"}}),
        ("an owner with many examples", {"privacy": {"clip_l2": 1.0, "epsilon": 1.0, "delta": 1e-5}}),
    ],
)
def test_what_has_no_number_of_targets_is_refused(match: str, tables: dict[str, Any]) -> None:
    federation(strategy=TARGETS)
    with pytest.raises(ValidationError, match=match):
        federation(**{"strategy": TARGETS, **tables})


def test_plain_flower_clients_send_none() -> None:
    with pytest.raises(ConfigError, match="no number of targets"):
        read_tables(TARGETS, "dense")
