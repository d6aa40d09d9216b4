"""The round record: what ``rounds.jsonl`` says of one round, typed, with one reader and one writer.

:class:`RoundDraft` is written while a round ends, by whoever knows something of it; :meth:`RoundDraft.record`
makes it a :class:`RoundRecord`. Nobody else names a key of the line. A record keeps the line's content as it
is, in its order and with keys that this version does not know: what was read is written back to the same
bytes.

Nothing in a file is relied on: what is missing, no finite number or of another type reads as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from headwater.text import finite, human_bytes, json_safe, plain

_NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of a round; ``…_dense``: what fp32 states would have taken. None where the line does not say."""

    up: int | None = None
    down: int | None = None
    up_dense: int | None = None
    down_dense: int | None = None


WAYS = ("nothing", "first", "since", "whole")
Way = Literal["nothing", "first", "since", "whole"]
"""The client had it; it was its first; what was added since the one that it held; all of it once more."""


@dataclass
class SentStates:
    """States that were sent, to train from or to be evaluated.

    Args:
        rows: how often, and in how many bytes, by way and by how many versions the client was behind.
    """

    rows: dict[tuple[Way, int], tuple[int, int]] = field(default_factory=dict)

    def add(self, way: Way, behind: int, size: int) -> None:
        """One more.

        Args:
            way: how.
            behind: versions between what the client held and this state; 0 unless ``since``.
            size: of the state's body.
        """
        count, total = self.rows.get((way, behind), (0, 0))
        self.rows[way, behind] = count + 1, total + size

    def record(self) -> dict[str, Any]:
        """As the round's line has it: by way ``sent`` and ``bytes``; of ``since`` how many by versions."""
        found: dict[str, Any] = {}
        for (way, behind), (count, size) in sorted(self.rows.items()):
            row = found.setdefault(way, {"sent": 0, "bytes": 0})
            row["sent"] += count
            row["bytes"] += size
            if way == "since":
                row.setdefault("versions", {})[str(behind)] = count
        return found


@dataclass(frozen=True, slots=True)
class ClientRow:
    """What one client did in a round.

    Args:
        content: its part of the line.
        not_evaluated: why it gave no evaluation though it was asked for one; empty if it gave one.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    not_evaluated: str = ""

    @property
    def failed(self) -> str:
        """Why its update is not in the round; empty if it is."""
        found = self.content.get("failed")
        return str(found) if found else ""

    @property
    def spared(self) -> bool:
        """Whether it was only not needed: enough others had answered."""
        return bool(self.content.get("spared"))

    @property
    def suspect(self) -> str:
        """Why its update stood out among the round's (``strategy.screen``); empty if it did not."""
        found = self.content.get("suspect")
        return str(found) if found else ""

    @property
    def left_out(self) -> bool:
        """Whether the round was merged without it for that."""
        return bool(self.content.get("left_out"))

    @property
    def method(self) -> str:
        """The name of its method; empty in a federation with one method."""
        found = self.content.get("method")
        return str(found) if found else ""

    @property
    def bytes_up(self) -> int:
        """That it sent."""
        return _whole(self.content.get("bytes_up")) or 0

    @property
    def bytes_down(self) -> int:
        """That it was sent."""
        return _whole(self.content.get("bytes_down")) or 0

    @property
    def simulated(self) -> Mapping[str, Any]:
        """What its task took in simulated time: ``asked_s``, ``end_s`` …; empty without simulated devices."""
        return _table(self.content.get("simulated"))

    @property
    def bytes_fisher(self) -> int | None:
        """Of ``bytes_up``, its Fisher; None without one."""
        return _whole(self.content.get("bytes_fisher"))

    def number(self, name: str) -> float | None:
        """A number of it, such as ``loss``, ``examples`` or ``seconds``; None if it has none."""
        return finite(self.content.get(name))


@dataclass(frozen=True)
class RoundRecord:
    """One line.

    Args:
        content: the line's, from JSON.
    """

    content: Mapping[str, Any]

    @staticmethod
    def read(line: bytes) -> RoundRecord:
        """The record of a line.

        Raises:
            ValueError: no JSON, or not of a round.
        """
        content = json.loads(line)
        if not isinstance(content, dict) or not isinstance(content.get("round"), int):
            raise ValueError(f"expected a table with the number of a round, got {line[:80]!r}")
        return RoundRecord(content)

    def line(self) -> bytes:
        """The line, without its line feed."""
        return json.dumps(json_safe(self.content), separators=(",", ":")).encode()

    def without_clients(self) -> RoundRecord:
        """The record without the tables that have an entry for each client."""
        of_clients = ("clients", "clients_each", "not_evaluated")
        return RoundRecord({name: part for name, part in self.content.items() if name not in of_clients})

    @property
    def round(self) -> int:
        """Its number; 0 before training."""
        number: int = self.content["round"]
        return number

    @cached_property
    def clients(self) -> dict[str, ClientRow]:
        """By name, everyone who was asked."""
        reasons = {
            client: f"evaluation: {reason}"
            for client, reason in _table(self.content.get("not_evaluated")).items()
            if reason and not str(reason).startswith(_NOT_ASKED)
        }
        rows = _table(self.content.get("clients")).items()
        return {c: ClientRow(row, reasons.get(c, "")) for c, row in rows if isinstance(row, Mapping)}

    @cached_property
    def bytes(self) -> Traffic:
        """Of training and evaluation together."""
        sizes = _table(self.content.get("bytes"))
        names = ("up", "down", "up_dense", "down_dense")
        return Traffic(**{name: _whole(sizes.get(name)) for name in names})

    @property
    def states(self) -> str:
        """How states travelled down, in words: ``4 nothing, 3 since 1.2 KB``; empty where nobody says."""
        rows = {way: _table(row) for way, row in _table(self.content.get("states")).items()}
        told = []
        for way in WAYS:
            if way in rows:
                size = "" if way == "nothing" else f" {human_bytes(_whole(rows[way].get('bytes')))}"
                told.append(f"{_whole(rows[way].get('sent')) or 0:,} {way}{size}")
        return ", ".join(told)

    @property
    def seconds(self) -> float | None:
        """The round with its evaluation."""
        return finite(self.content.get("seconds"))

    @property
    def tested(self) -> bool:
        """Whether the adapter was evaluated on the server's file."""
        return "test" in self.content

    @property
    def test(self) -> Mapping[str, Any]:
        """Metrics on the server's file, and ``examples``; empty without."""
        return _table(self.content.get("test"))

    @property
    def test_by(self) -> dict[str, Mapping[str, Any]]:
        """The same of each group of the file's rows (``evaluation.by``); empty without."""
        return {group: _table(row) for group, row in _table(self.content.get("test_by")).items()}

    @property
    def pooled(self) -> Mapping[str, Any]:
        """Metrics over the clients' validation splits together; empty without."""
        return _table(self.content.get("clients_pooled"))

    @property
    def each(self) -> dict[str, Mapping[str, Any]]:
        """Metrics of each client's validation split."""
        return {client: _table(row) for client, row in _table(self.content.get("clients_each")).items()}

    @property
    def gap(self) -> Mapping[str, Any]:
        """The gap of the merge: ``exact``, ``relative``, ``absolute``, ``saturated``, ``modules``."""
        return _table(self.content.get("gap"))

    @property
    def gap_unmeasured(self) -> bool:
        """Whether there were no products to compare: clients sent coefficients of seeds."""
        return "gap" in self.content and self.content["gap"] is None

    @property
    def simulated(self) -> Mapping[str, Any]:
        """When it was in simulated time, ``start_s`` to ``end_s``, and ``joules``; empty without devices."""
        return _table(self.content.get("simulated"))

    @property
    def merge(self) -> Mapping[str, Any]:
        """The rule's report."""
        return _table(self.content.get("merge"))

    @property
    def contribution(self) -> Mapping[str, Any]:
        """What players brought: ``kind``, ``metric``, ``gain``, ``evaluations``, ``values``; or nothing."""
        return _table(self.content.get("contribution"))

    @property
    def privacy(self) -> Mapping[str, Any]:
        """What the run had spent after it: ``epsilon``, ``delta``, ``budget`` …; empty without noise."""
        return _table(self.content.get("privacy"))

    def spent(self) -> str:
        """The same in a line: ``ε 1.234 of 4 at δ 1e-05, 12 more rounds``; empty without noise."""
        privacy = self.privacy
        if (epsilon := finite(privacy.get("epsilon"))) is None:
            return ""
        budget, left = finite(privacy.get("budget")), finite(privacy.get("rounds_left"))
        of = "" if budget is None else f" of {budget:g}"
        more = "" if left is None else f", {left:,.0f} more round{'' if left == 1 else 's'}"
        none = "; reproducible noise: no privacy" if privacy.get("reproducible") else ""
        return f"ε {epsilon:.3f}{of} at δ {plain(privacy.get('delta'))}{more}{none}"

    def deciding(self, metric: str) -> float:
        """The deciding value: on the server's file if there is one, else over the clients; else NaN."""
        source = self.test if isinstance(self.content.get("test"), Mapping) else self.pooled
        value = finite(source.get(metric))
        return math.nan if value is None else value


class RoundDraft:
    """The record of a round that is ending. Who knows something of it says so here; the order is the line's.

    Args:
        round: its number.
        clients: by name, what each did; the draft's own from here on.
        sizes: bytes so far.

    Attributes:
        states: how global states travelled; whoever sends one counts it there.
    """

    def __init__(self, round: int, clients: Mapping[str, dict[str, Any]], sizes: Traffic) -> None:
        self._sizes = {
            "up": sizes.up or 0,
            "down": sizes.down or 0,
            "up_dense": sizes.up_dense or 0,
            "down_dense": sizes.down_dense or 0,
        }
        self.round, self.states = round, SentStates()
        self._content: dict[str, Any] = {"round": round, "clients": dict(clients), "bytes": self._sizes}

    def merged(self, gap: Mapping[str, Any] | None, report: Mapping[str, float]) -> None:
        """What the merge came to; a gap of None was not measured."""
        self._content["gap"] = None if gap is None else dict(gap)
        self._content["merge"] = dict(report)

    def spent(self, privacy: Mapping[str, Any]) -> None:
        """What the run has spent of its privacy, this round with it."""
        self._content["privacy"] = dict(privacy)

    def kept_back(self, norm: float) -> None:
        """What a compressed way down keeps back of the adapter after the round, as an L2 norm."""
        self._content["merge"] = {**self._content.get("merge", {}), "kept_back_norm": norm}

    def summed(self, sizes: Mapping[str, int]) -> None:
        """What edge aggregators sent in place of their clients' updates, in bytes by name."""
        if sizes:
            self._content["edges"] = {name: {"bytes_up": size} for name, size in sorted(sizes.items())}

    def stale(self, client: str, staleness: int) -> None:
        """How many versions old the client's base was."""
        self._content["clients"][client]["staleness"] = staleness

    def transferred(self, *, up: int = 0, down: int = 0, up_dense: int = 0, down_dense: int = 0) -> None:
        """More bytes went over the wire."""
        for name, size in (("up", up), ("down", down), ("up_dense", up_dense), ("down_dense", down_dense)):
            self._sizes[name] += size

    def tested(
        self,
        metrics: Mapping[str, float],
        examples: int,
        by: Mapping[str, tuple[int, Mapping[str, float]]] | None = None,
    ) -> None:
        """What the evaluation on the server's file found.

        Args:
            metrics: of all its rows.
            examples: how many these are, or their target tokens.
            by: both, the number first, of each group of rows.
        """
        self._content["test"] = {**metrics, "examples": examples}
        if by:
            self._content["test_by"] = {g: {**own, "examples": count} for g, (count, own) in by.items()}

    def not_asked(self, reasons: Mapping[str, str]) -> None:
        """Who could not be asked to evaluate, and why."""
        self.not_evaluated({client: f"{_NOT_ASKED}: {reason}" for client, reason in reasons.items()})

    def not_evaluated(self, reasons: Mapping[str, str]) -> None:
        """Who gave no evaluation, and why."""
        if reasons:
            self._content["not_evaluated"] = {**self._content.get("not_evaluated", {}), **reasons}

    def evaluated(self, pooled: Mapping[str, float], each: Mapping[str, Mapping[str, float]]) -> None:
        """What the clients measured, together and each."""
        self._content["clients_pooled"] = dict(pooled)
        self._content["clients_each"] = {client: dict(row) for client, row in each.items()}

    def contributed(self, found: Mapping[str, Any]) -> None:
        """What each player brought to the round, and what it took to find out."""
        self._content["contribution"] = dict(found)

    def lost(self, reasons: Mapping[str, str]) -> None:
        """Who could not take part at all."""
        rows = self._content["clients"]
        for client, reason in reasons.items():
            rows.setdefault(client, {"bytes_down": 0, "failed": reason})
        self._content["clients"] = dict(sorted(rows.items()))

    def simulated(self, times: Mapping[str, float], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """When the round was, in simulated time, and what each client took; only with simulated devices.

        Args:
            times: ``start_s``, ``trained_s``, ``end_s``, and the energy of all.
            rows: by client. Who was not asked in this round is not in it.
        """
        self._content["simulated"] = dict(times)
        for client, row in rows.items():
            if client in self._content["clients"]:
                self._content["clients"][client]["simulated"] = dict(row)

    def set_state(self, state_sha256: str) -> None:
        """The adapter's hash after the round."""
        self._content["state_sha256"] = state_sha256

    def record(self, seconds: float) -> RoundRecord:
        """The record of the round, which took so long."""
        states = self.states.record()
        told = {"states": states} if states else {}
        return RoundRecord({**self._content, **told, "seconds": round(seconds, 3)})


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: object) -> int | None:
    known = finite(value)
    return None if known is None else int(known)
