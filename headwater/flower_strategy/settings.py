"""What a strategy in somebody's Flower app is asked for, and what it asks of the mod."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord
from pydantic import ValidationError

from headwater.config.codec import Codec, DenseCodec
from headwater.config.settings import Settings
from headwater.config.strategy import Strategy
from headwater.errors import ConfigError, DecodeError

ASKED = "headwater"
"""The key of a train message's ConfigRecord."""
Table = str | Mapping[str, Any]


class _Tables(Settings):
    strategy: Strategy
    codec: Codec


def read_tables(rule: Table, codec: Table) -> tuple[Strategy, Codec | None]:
    """A rule and a codec from their names or tables, as in ``[strategy]`` and ``[codec] up``.

    Returns:
        Their settings; no codec where clients are to send plain arrays.

    Raises:
        ConfigError: no such kind or key, or one that needs more than clients of a plain Flower app send.
    """
    tables = {"strategy": _table(rule), "codec": _table(codec)}
    try:
        found = _Tables.model_validate_json(json.dumps(tables))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            "HeadwaterStrategy, " + ".".join(map(str, first["loc"])), expected=first["msg"], got=str(tables)
        ) from None
    strategy = found.strategy
    for unfit, what in (
        (strategy.needs_fisher, "a rule that needs no Fisher information of the clients"),
        (strategy.control_variates, "no control_variates, which clients would train with"),
        (strategy.norm_bound is not None, "no norm_bound: a mod of Flower's clips"),
        (
            strategy.weighting == "targets",
            "weighting by examples or equal: clients send no number of targets",
        ),
        ("space" in tables["strategy"], "no space: arrays are merged as they are"),
        (found.codec.shifts, "error_feedback true, false or 'ef14'"),
    ):
        if unfit:
            raise ConfigError("HeadwaterStrategy", expected=what, got=str(tables))
    return strategy, None if found.codec == DenseCodec() else found.codec


def _table(value: Table) -> dict[str, Any]:
    return {"kind": value} if isinstance(value, str) else dict(value)


@dataclass(frozen=True)
class Asked:
    """What the strategy asks of one node in one round.

    Args:
        codec: of this round.
        series: which strategy it is: what is held back for another one is forgotten.
        number: of this strategy's rounds, from 1.
        accepted: the last one whose reply from this node was merged; 0 for none.
        seed: of random rounding.
    """

    codec: Codec
    series: str
    number: int
    accepted: int
    seed: int

    def to_text(self) -> str:
        """For the message's ConfigRecord."""
        content = {
            "codec": self.codec.model_dump(mode="json"),
            "series": self.series,
            "number": self.number,
            "accepted": self.accepted,
            "seed": self.seed,
        }
        return json.dumps(content, sort_keys=True)

    @staticmethod
    def of(config: ConfigRecord) -> Asked | None:
        """What a message asks; None if nothing.

        Raises:
            DecodeError: what no strategy of this version asks.
        """
        if ASKED not in config:
            return None
        try:
            content = json.loads(str(config[ASKED]))
            tables = {"strategy": {"kind": "mean"}, "codec": content["codec"]}
            codec = _Tables.model_validate_json(json.dumps(tables)).codec
            numbers = (int(content[key]) for key in ("number", "accepted", "seed"))
            return Asked(codec, str(content["series"]), *numbers)
        except (ValueError, KeyError, TypeError) as error:  # ValidationError is a ValueError
            raise DecodeError(
                f"config {ASKED!r}",
                expected="what HeadwaterStrategy of this version asks",
                got=str(error)[:300],
                hint="Server and clients must have the same minor version of headwater.",
            ) from None
