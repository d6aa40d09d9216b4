"""What every coordinator is: a machine that takes events and says what to do. No I/O, no clock.

:class:`CoordinatorBase` is the base of :class:`~headwater.protocol.coordinator.Coordinator` and
:class:`~headwater.protocol.buffered.BufferedCoordinator`. Both take the events here and answer with the
actions here; each has a table of handlers by phase and event.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, replace
from enum import Enum
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from headwater.errors import ConfigError
from headwater.protocol.retries import Retries


class Phase(Enum):
    """Where the machine is."""

    IDLE = "idle"
    OPEN = "open"


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Open ``round`` with these clients at time ``now_s``.

    ``accepted``: whose updates an earlier process had accepted into this round. They are not asked;
    they count even if they are not among ``clients`` any more. Buffered only: ``started``, the version
    that such an update started from, where it is not this one; ``absent``, who may be asked after
    ``Joined``.
    """

    round: int
    clients: tuple[str, ...]
    now_s: float
    accepted: tuple[str, ...] = ()
    started: tuple[tuple[str, int], ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrived:
    """A reply came in; it has not been decoded."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Folded:
    """The reply that was to be folded is in the accumulator."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A client said it failed, is gone, or its reply was refused."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A client is revoked: it is not asked again in this round. Its accepted update stays."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A client of this round that failed because it was not there is there now."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Tick:
    """It is ``now_s``."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the open round (at once if none is open)."""

    reason: str


Event: TypeAlias = Begin | Arrived | Folded | Failed | Gone | Joined | Tick | Stop


# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this client its task. An earlier request to it that was not answered is void."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Decode this reply and add it; report back with ``Folded`` or ``Failed``."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop this reply unread."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """The round is over: merge what was folded. ``failed`` says why, of everyone else who was asked."""

    round: int
    accepted: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    last: bool
    """Whether no round follows."""
    started: tuple[tuple[str, int], ...] = ()
    """Buffered only: the version that each accepted update started from."""
    spared: tuple[str, ...] = ()
    """Those of ``failed`` who did nothing wrong: enough updates were in before theirs."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Too few were accepted; nothing is merged and the state stays as it was."""

    round: int
    accepted: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


Action: TypeAlias = Ask | Fold | Discard | Close | Halt


# --- what the machines share ----------------------------------------------------------------------


class MachineRules(Protocol):
    """What the rules of every machine have."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def rounds(self) -> int:
        """The last number."""

    @property
    def deadline_s(self) -> float | None:
        """How long after its begin something ends; never if None."""

    @property
    def retry_s(self) -> float | None:
        """Seconds after which a failed client is asked again; None: never, the machine halts instead."""


RulesT = TypeVar("RulesT", bound=MachineRules)
Handler: TypeAlias = Callable[[Any, Event], list[Action]]


class CoordinatorBase(ABC, Generic[RulesT]):
    """Numbers that are opened one after the other: rounds, or versions.

    Args:
        rules: when one ends.
        done: numbers that an earlier process finished.
    """

    _what: ClassVar[str] = "round"
    _ends: ClassVar[str] = "to close"

    def __init__(self, rules: RulesT, done: int) -> None:
        self._rules = rules
        self._phase = Phase.IDLE
        self._number = done
        self._now_s = self._counted_from_s = 0.0
        self._ends_s: float | None = None
        self._retries = Retries(rules.retry_s)
        self._stopping = False

    @property
    def phase(self) -> Phase:
        """Where the machine is."""
        return self._phase

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping

    @property
    def persistent(self) -> bool:
        """Whether it never halts: it has a ``retry_s``."""
        return self._rules.retry_s is not None

    @property
    def next_s(self) -> float:
        """When a ``Tick`` will next do something, if nothing else happens; infinity if never."""
        ends_s = math.inf if self._ends_s is None else self._ends_s
        return min(ends_s, self._retries.next_s)

    def retime(self, *, deadline_s: float | None, retry_s: float | None) -> None:
        """Change the times at once, for what is open too, counted from where they were counted.

        Raises:
            ConfigError: a time is not above 0, or ``retry_s`` comes or goes.
        """
        _require_same_kind(self._rules.retry_s, retry_s)
        self._rules = replace(self._rules, deadline_s=deadline_s, retry_s=retry_s)
        if self._phase is Phase.OPEN:
            self._ends_s = None if deadline_s is None else self._counted_from_s + deadline_s
            self._retries.retime(retry_s, self._now_s)

    def receive(self, event: Event) -> list[Action]:
        """Take one event; return what to do, in order.

        Raises:
            ConfigError: ``Begin`` while something is open, or with too few clients, or out of order.
        """
        return self._handlers()[self._phase, type(event)](self, event)

    @abstractmethod
    def _handlers(self) -> Mapping[tuple[Phase, type], Handler]:
        """The handler of every event in every phase."""

    def _change(self, changes: Mapping[str, Any]) -> None:
        """Change rules from the next one on; arguments that are left out stay."""
        if self._phase is not Phase.IDLE:
            raise ConfigError(
                f"{self._what} {self._number}",
                expected=f"it {self._ends} before rules change",
                got=f"an open {self._what}",
            )
        if changes.get("rounds", self._number) < self._number:
            raise ConfigError(
                "rounds", expected=f"at least {self._number}: they are done", got=str(changes["rounds"])
            )
        self._rules = replace(self._rules, **changes)

    def _begin_while_open(self, event: Event) -> list[Action]:
        raise ConfigError(
            f"{self._what} {self._number}", expected=f"it {self._ends} before another begins", got="Begin"
        )

    def _stop(self, event: Event) -> list[Action]:
        self._stopping = True
        return []

    def _nothing(self, event: Event) -> list[Action]:
        return []

    def _set_deadline(self) -> None:
        deadline_s, self._counted_from_s = self._rules.deadline_s, self._now_s
        self._ends_s = None if deadline_s is None else self._now_s + deadline_s


def _require_same_kind(before: float | None, after: float | None) -> None:
    """Raise ``ConfigError`` if a machine would become persistent, or cease to be, within a round."""
    if (before is None) != (after is None):
        raise ConfigError(
            "retry_s", expected="a machine that stays what it is", got=f"{before} before, {after} now"
        )
