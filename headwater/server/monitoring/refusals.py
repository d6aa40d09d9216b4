"""Refusals: what was refused, by reason, without letting a flood of it take memory or attention."""

from __future__ import annotations

from collections import Counter, OrderedDict

NOT_SIGNED = "a reply that is not signed by its client"
OTHER = "other"
REASONS: dict[str, str] = {
    "path": "a request for something that this port does not have: a scanner, or a browser",
    "headers": "a request without the signed headers of an agent: a scanner, or another program",
    "unknown": "the name is not enrolled here: accept the device's line, or the owner has another server's",
    "revoked": "the name's keys were revoked: the owner stops the agent, or enrols with new keys",
    "signature": "the request is not signed with the name's key: someone else uses the name, or the owner "
    "made new keys and did not enrol again",
    "time": "the device's clock is more than 5 minutes off: the owner sets it right",
    "replayed": "the same request came twice: someone copies requests, or a proxy repeats them",
    "replaced": "two agents run with the same keys, and this is the older one: the owner ends it",
    "inactive": "the agent goes on with a session of before the daemon's start: it activates by itself",
    "version": "the agent's minor version is not the server's: the owner installs the server's",
    "no length": "a request without its length: a proxy in between, or another program",
    "length": "the body has another length than was signed: a proxy in between changes requests",
    "too large": "a request is larger than any agent's: another program, or a defect",
    "full": "replies of this client wait to be fetched, and one more has no room: it comes again",
    "bytes per hour": "the client has used up `limits.bytes_per_hour` of server.toml until the next hour",
    "at once": "the client asks more than `limits.requests_at_once` of server.toml at the same time",
    "requests": "the client asks more than 65,536 times in 10 minutes",
    "broken off": "the connection ended within a request: a bad line, the agent comes again",
    "slow": "a body took longer than `limits.body_s` of server.toml: a slow line, raise it there",
    "body": "the body is not the one that was signed: a proxy in between changes requests",
    "another's node": "a client asked in the name of another one's node: an attack, or a defect",
    "another's message": "a client answered what another one was asked: an attack, or a defect",
    "earlier start": "an answer to what an earlier start of the daemon asked: the client is asked again",
    "reply too large": "a reply is larger than this run's can be: another version, or an attack",
    "garbled": "a reply does not hold together: a defect, or an attack",
    "not answered": "the port could not answer, for a reason that the log has",
    NOT_SIGNED: "an update came that the client's key has not signed: an attack, or the owner made new keys",
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
