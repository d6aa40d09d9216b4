"""What a running federation tells those who watch it. An observer takes events and returns nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from headwater.server.round_record import RoundRecord


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Profiles are in; training begins after ``done`` of ``rounds`` rounds, which had come to this."""

    rounds: int
    done: int
    clients: int
    best: float = math.nan
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """Tasks are on their way to ``clients`` clients."""

    round: int
    clients: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """No round can begin, or the open one cannot end: ``have`` clients of ``need``; over when equal.

    ``missing``: who could come, each with the reason that it is not counted.
    """

    have: int
    need: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitingFor:
    """Who has not answered in the open round or its evaluation, told some seconds after they were asked.

    ``clients``: name and how it stands with it (``at work``, ``offline``, ``asked again soon``), sorted;
    empty once nobody is waited for. ``kind``: ``train`` or ``evaluate``.
    """

    round: int
    kind: str
    clients: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ClientKnown:
    """A client has said what it has."""

    client: str
    version: str
    examples: int


@dataclass(frozen=True, slots=True)
class ClientAsked:
    """A request is on its way: ``profile``, ``train`` or ``evaluate``."""

    round: int
    client: str
    kind: str
    bytes_down: int


@dataclass(frozen=True, slots=True)
class ClientDone:
    """An update was folded."""

    round: int
    client: str
    bytes_up: int


@dataclass(frozen=True, slots=True)
class ClientFailed:
    """A client is out of this round, and why."""

    round: int
    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluating:
    """The new global adapter is being evaluated."""

    round: int


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round is on disk; ``record`` is its line in ``rounds.jsonl``, ``value`` the deciding metric."""

    round: int
    record: RoundRecord
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know."""

    text: str


Event: TypeAlias = (
    RunStarted
    | RoundStarted
    | Waiting
    | WaitingFor
    | ClientKnown
    | ClientAsked
    | ClientDone
    | ClientFailed
    | Evaluating
    | RoundEnded
    | Notice
)
Observer: TypeAlias = Callable[[Event], None]
