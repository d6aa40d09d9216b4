"""Refusals: what was refused, by reason, without letting a flood of it take memory or attention."""

from __future__ import annotations

from collections import Counter, OrderedDict

NOT_SIGNED = "a reply that is not signed by its client"
OTHER = "other"
REASONS: dict[str, str] = {
    "path": "nothing that this port has was asked for: a scanner, or a browser",
    "headers": "an agent's signed headers are missing: a scanner, or another program",
    "unknown": "the name is not enrolled here: accept the device's line, or the owner has another server's",
    "revoked": "the name's keys were revoked: the owner stops the agent, or enrols with new keys",
    "signature": "not signed with the name's key: someone else uses the name, or the owner made new keys "
    "and did not enrol again",
    "time": "the device's clock is more than 5 minutes off: the owner sets it",
    "replayed": "the same request twice: someone copies requests, or a proxy repeats them",
    "replaced": "two agents run with the same keys, this is the older: the owner ends it",
    "inactive": "a session of before the daemon's start: the agent activates by itself",
    "version": "another minor version: the owner installs the server's",
    "no length": "no length given: a proxy, or another program",
    "length": "another length than was signed: a proxy changes requests",
    "too large": "larger than any agent's request: another program, or a defect",
    "full": "no room for one more reply of this client: it comes again",
    "bytes per hour": "`limits.bytes_per_hour` of server.toml is used up until the next hour",
    "at once": "more than `limits.requests_at_once` of server.toml at the same time",
    "requests": "more than 65,536 requests in 10 minutes",
    "broken off": "the connection ended within a request: the agent comes again",
    "slow": "a body took longer than `limits.body_s` of server.toml: raise it for slow lines",
    "body": "not the body that was signed: a proxy changes requests",
    "another's node": "a client asked in the name of another one's node: an attack, or a defect",
    "another's message": "a client answered what another one was asked: an attack, or a defect",
    "earlier start": "an answer to an earlier start of the daemon: the client is asked again",
    "reply too large": "larger than this run's replies can be: another version, or an attack",
    "garbled": "a reply does not hold together: a defect, or an attack",
    "not answered": "the port could not answer: the log has why",
    NOT_SIGNED: "an update that the client's key has not signed: an attack, or the owner made new keys",
    OTHER: "all reasons beyond the first 64",
}
"""Why the agents' port refuses, and what that means: the words of the status, the page and Prometheus."""
MOST_REASONS = 64
"""Reasons that are counted apart; the others are counted together, as ``other``."""
TELL_EVERY_S = 60.0
"""Refusals of one kind are told at most so often: a flood must not push out what matters."""


class Refusals:
    """Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._told: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def add(self, reason: str, client: str, count: int, now: float) -> tuple[str, int]:
        """Count; give the reason as it is kept, and how many to tell of now (0: none yet)."""
        if reason not in self.counts and len(self.counts) >= MOST_REASONS:
            reason = OTHER
        self.counts[reason] += count
        told, untold = self._told.pop((reason, client), (-TELL_EVERY_S, 0))
        untold += count
        quiet = 0 <= now - told < TELL_EVERY_S
        self._told[reason, client] = (told, untold) if quiet else (now, 0)
        if len(self._told) > 4 * MOST_REASONS:
            self._told.popitem(last=False)
        return reason, 0 if quiet else untold
