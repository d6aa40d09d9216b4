"""What an organiser asks a running daemon, and what it answers: :class:`Organiser` and its rows.

The daemon implements :class:`Organiser`; the gRPC service, the web page and the command line know
nothing else of it. Frozen data, no I/O. Times are Unix seconds, ages are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

RunState: TypeAlias = Literal["queued", "running", "waiting", "paused", "finished", "stopped", "failed"]
"""``waiting``: running, but too few clients are there; ``failed``: needs the organiser, see ``reason``."""
ClientState: TypeAlias = Literal["online", "offline", "revoked"]


@dataclass(frozen=True, slots=True)
class RunRow:
    """One submitted run."""

    run: str
    name: str
    state: RunState
    reason: str
    round: int
    """The last finished round."""
    rounds: int
    accepted: int
    """Updates of the open round that are in."""
    asked: int
    """Clients asked in the open round; 0 between rounds."""
    metric: str
    value: float
    """The deciding metric after the last measured round; NaN before."""
    best_round: int
    best_value: float
    bytes_up: int
    bytes_down: int
    submitted: float
    seconds_per_round: float
    """Median of the last rounds; NaN before the first."""
    open: int = 0
    """The round that is open or being evaluated; 0 between rounds."""
    note: str = ""
    """What was asked and is still to come: ``pauses after round 10``; in an answer, what the call did."""
    warnings: tuple[str, ...] = ()
    """Settings that cannot be met as things are, one sentence each."""
    privacy: str = ""
    """What noise has cost so far: ``ε 1.234 of 4 at δ 1e-05, 12 more rounds``; empty without."""


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One enrolled client."""

    client: str
    state: ClientState
    fingerprint: str
    seen_s_ago: float | None
    """None if never."""
    doing: str
    """``idle``, ``train 12``, ``evaluate 11``."""
    examples: int
    accepted_rounds: int
    failed_rounds: int
    bytes_up: int
    bytes_down: int
    version: str
    last_error: str


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One version of a run's global adapter, with its lineage."""

    run: str
    version: int
    """1, 2, …: the order in which they were made. Version 1 is the initial adapter."""
    round: int
    parent: int
    """The version it was made from; 0 for the first."""
    sha256: str
    config_sha256: str
    cohort: tuple[str, ...]
    """The clients whose updates are in it, sorted."""
    metric: str
    value: float
    best: bool
    kept: bool
    """Whether its values are still on disk; the row itself is kept for ever."""
    created: float
    note: str
    """``initial``, ``round 7``, ``rollback to version 3``."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that happened, in order of ``seq``."""

    seq: int
    time: float
    kind: str
    """``run``, ``round``, ``client``, ``refused``, ``error``, ``notice``."""
    run: str
    text: str
    data: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon at one moment."""

    version: str
    started: float
    rss_bytes: int
    certificate_days: int
    runs: tuple[RunRow, ...]
    clients: tuple[ClientRow, ...]
    refused: Mapping[str, int] = field(default_factory=dict)
    """Requests refused at the port and updates refused by the round, by reason."""
    errors: tuple[WatchEvent, ...] = ()
    """The latest ones, newest last."""


class Organiser(Protocol):
    """The organiser's side of a daemon. Every method may raise ``HeadwaterError``; none trains or waits.

    A ``run`` that is empty is the latest one. The row that a method gives says in its ``note`` what the call
    did and from when on that holds.
    """

    def status(self) -> Status:
        """The state of the daemon, its runs and clients."""

    def watch(self, after: int = 0, ended: Callable[[], bool] = lambda: False) -> Iterator[WatchEvent]:
        """Events after ``after`` (0: from now on; -1: all that are remembered), one by one.

        Ends within a second after ``ended`` says so, also while nothing happens: a thread that waits for
        the next event cannot be told otherwise.
        """

    def submit(self, toml: str, folder: Path) -> RunRow:
        """Queue a federation; paths in ``toml`` are relative to ``folder`` on the daemon's machine."""

    def pause(self, run: str) -> RunRow:
        """End the open round, then wait for :meth:`resume`. Survives a restart."""

    def resume(self, run: str, folder: Path | None = None) -> RunRow:
        """Go on; from now on the federation's relative paths start at ``folder``, if one is given."""

    def stop(self, run: str) -> RunRow:
        """End the open round, write the result, and do not go on."""

    def change(self, run: str, changes: Mapping[str, str]) -> RunRow:
        """Change settings: times at once, ``rounds``, ``min_clients`` and others from the next round on."""

    def accept(self, request: str) -> ClientRow:
        """Enrol the device that made this enrolment request."""

    def revoke(self, client: str) -> ClientRow:
        """Revoke both of the client's keys, at once."""

    def adapters(self, run: str = "") -> tuple[AdapterRow, ...]:
        """All versions of a run (of the latest run, if empty)."""

    def export(self, run: str = "", version: int = 0) -> Iterator[bytes]:
        """A tar of the adapter's folder (the best version, if 0), in pieces of at most 1 MiB.

        Its values are kept for ever from then on, until :meth:`unpin`.
        """

    def rollback(self, run: str, version: int) -> AdapterRow:
        """Go on from an earlier version's values, as a new one made between rounds; the earlier's row."""

    def forget(self, run: str, client: str) -> AdapterRow:
        """Revoke a client, and go on from the newest version that nothing of it is in; that version's row."""

    def unpin(self, run: str, version: int) -> AdapterRow:
        """Keep a version that was exported or gone back to only as long as any other; its row."""
