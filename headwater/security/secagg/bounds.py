"""GroupBounds: how many neighbours and shares a group needs. Entry point: :func:`choose`.

A client's masks and shares go to its k neighbours on a ring of all n clients in a random order: the k/2
before and the k/2 behind (Bell 2020, section 3.2, "Harary graph"). t shares give a secret. With c = ⌊γn⌋
clients that collude with the server and d = ⌊δn⌋ that drop out, all but a small share of orders must have:

* *nobody's secret is theirs*: no client has t colluding neighbours (2^-40, union over n clients);
* *the honest survivors hang together*, however the server chooses whom it drops. To part them the ring must
  be cut at two places: k/2 in a row without an honest survivor, twice. Of any k/2 in a row w are required to
  survive, so at both all of w or more collude (2^-40, union over the pairs of places): see
  :func:`least_window`;
* *the sum is found*, when d random clients drop out: every client keeps t neighbours, and every k/2 in a row
  so many survivors (2^-20).

The tails are those of the hypergeometric distribution, in integers: all machines say the same. Where no
smaller k does, everybody is everybody's neighbour, and the first two hold for every order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb, floor

from headwater.errors import ConfigError, UpdateRejected

PRIVACY_BITS = 40
LOSS_BITS = 20
FEWEST = 3
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Promise:
    """What the federation states.

    Args:
        dropouts: δ, the fraction of a group that may drop out.
        colluding: γ, the fraction that may be the server's own.
        least: fewer clients are never asked for one sum: else a server would ask one, and its own.
    """

    dropouts: float = 0.3
    colluding: float = 0.1
    least: int = FEWEST

    def dropped(self, clients: int) -> int:
        """d, at most."""
        return floor(self.dropouts * clients)

    def corrupt(self, clients: int) -> int:
        """c, at most."""
        return floor(self.colluding * clients)

    def quorum(self, clients: int) -> int:
        """So many signatures belong to one list only: more than half of the honest ones are among them."""
        return (clients + self.corrupt(clients)) // 2 + 1

    def fewest(self, clients: int) -> int:
        """So many must survive: the quorum, two honest ones, and all but those that may drop out."""
        return max(self.quorum(clients), self.corrupt(clients) + 2, clients - self.dropped(clients))


@lru_cache(maxsize=16)
def fewest_honest(promise: Promise) -> int:
    """So many honest clients are in every sum whose list honest clients sign, however many were asked for it.

    A lying server may drop honest ones alone: of n that are asked ⌊γn⌋ are its own, ⌊δn⌋ may lack before
    there is a group, and of the group as many as is stated. The least over all n.

    Raises:
        ConfigError: none need be.
    """
    found = min(
        promise.fewest(n - promise.dropped(n)) - promise.corrupt(n)
        for n in range(max(promise.least, FEWEST), max(promise.least, MOST) + 1)
    )
    if found < 1:
        raise ConfigError(
            "privacy.masks", expected="an honest client in every sum, whoever drops out",
            got=f"fractions of {promise.dropouts:g} that drop out and {promise.colluding:g} that collude",
            hint="State smaller fractions of drop-outs or of colluding clients.",
        )  # fmt: skip
    return found


@dataclass(frozen=True, slots=True)
class GroupBounds:
    """The numbers of one group.

    Args:
        clients: n.
        neighbours: k; even, or n - 1.
        threshold: t.
        window: of k/2 clients in a row so many must survive; 0 where everybody is a neighbour.
    """

    clients: int
    neighbours: int
    threshold: int
    window: int

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.neighbours == self.clients - 1

    def require_private(self, promise: Promise) -> None:
        """Refuse bounds under which the server and those who collude could learn more than the sum.

        A client asks this of what the server says.

        Raises:
            UpdateRejected: says what was expected.
        """
        n, k, t = self.clients, self.neighbours, self.threshold
        c = promise.corrupt(n)
        formed = FEWEST <= n <= MOST and 1 <= t <= k <= n - 1 and (self.complete or not k % 2)
        if formed and self.complete:
            private = t > c
        else:
            private = formed and t >= most_common(n - 1, c, k, n, PRIVACY_BITS + 1) + 1
            private = private and self.window >= least_window(n, c, k // 2)
        if not private:
            raise UpdateRejected(
                "masked sum, group", expected=f"bounds that hold against {c} of {n} colluding clients",
                got=f"{k} neighbours, threshold {t}, window {self.window}",
                hint="This client takes no part. The server must be of the same version and state the same.",
            )  # fmt: skip


@lru_cache(maxsize=64)
def choose(clients: int, promise: Promise) -> GroupBounds:
    """The fewest neighbours that keep the promise, and the largest threshold that they allow.

    Raises:
        ConfigError: too few or too many clients, or fractions that cannot both be.
    """
    n, c, d = clients, promise.corrupt(clients), promise.dropped(clients)
    if not FEWEST <= n <= MOST or n - d < promise.fewest(n):
        raise ConfigError(
            "privacy.masks", expected=f"{FEWEST} to {MOST} clients, of whom enough remain for a quorum",
            got=f"{n} clients, {d} may drop out and {c} collude",
            hint="Ask more clients, or state smaller fractions of drop-outs and colluding clients.",
        )  # fmt: skip
    complete = GroupBounds(n, n - 1, n - 1 - d, 0)
    low, high, found = (
        1,
        (n - 2) // 2,
        complete,
    )  # k = 2·half; more neighbours never do worse but for rounding
    while low <= high:
        half = (low + high) // 2
        bounds = _with(n, 2 * half, c, d)
        low, high = (half + 1, high) if bounds is None else (low, half - 1)
        found = found if bounds is None else bounds
    if complete.threshold <= c and found is complete:
        raise ConfigError(
            "privacy.masks", expected="more survivors than colluding clients", got=f"{n - 1 - d} against {c}",
            hint="State a smaller fraction of drop-outs or of colluding clients.",
        )  # fmt: skip
    return found


def _with(n: int, k: int, c: int, d: int) -> GroupBounds | None:
    """Bounds with k neighbours; None if they keep not all promises."""
    threshold = k - most_common(n - 1, d, k, n, LOSS_BITS + 1)
    if threshold < most_common(n - 1, c, k, n, PRIVACY_BITS + 1) + 1:
        return None
    window = k // 2 - most_common(n, d, k // 2, n, LOSS_BITS + 1)
    if window < least_window(n, c, k // 2):
        return None
    return GroupBounds(n, k, threshold, window)


def least_window(clients: int, corrupt: int, half: int) -> int:
    """The smallest w such that no two disjoint rows of ``half`` members have w colluding ones each.

    Never is enough: 2w > c. Else with p = P[X ≥ w] for one row: counts of marked ones in disjoint rows of a
    random order are negatively associated (Joag-Dev and Proschan 1983, 3.1), so both have w with at most p²,
    and of n rows there are fewer than n²/2 pairs: n²p²/2 ≤ 2^-(b + 1) where n·p ≤ 2^-(b/2).
    """
    return min(most_common(clients, corrupt, half, clients, PRIVACY_BITS // 2), corrupt // 2) + 1


@lru_cache(maxsize=1024)
def most_common(population: int, marked: int, drawn: int, trials: int, bits: int) -> int:
    """The smallest x with trials·P[X > x] ≤ 2^-bits, for X marked ones among those drawn without return."""
    allowed = comb(population, drawn)
    x = min(marked, drawn)
    above, factor = 0, trials << bits
    while x > max(0, drawn - (population - marked)):
        above += comb(marked, x) * comb(population - marked, drawn - x)
        if above * factor > allowed:
            break
        x -= 1
    return x
