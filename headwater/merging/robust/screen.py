"""ScreenedAggregator: which updates of a round stand out, beside any rule; on wish it merges without them.

Two numbers tell a sign-flipped or a scaled update from the others: its length beside the median length, and
the cosine of its direction with the median of all directions, value by value. So that no update need be kept,
a direction is kept as a sketch of :data:`WIDTH` numbers: each value is added, with a sign, to one of them
(Charikar et al. 2002; Weinberger et al. 2009, arXiv 0902.2206), which keeps a cosine to about 1/√WIDTH. Up to
that size the sketch is the direction itself. Its draws come from the federation's seed, which devices know:
who reckons with it can hide a direction, but no length.

To leave out what stands out, the updates are looked at in one pass and merged in the next. Half of a round or
more cannot be outliers: then nobody is left out. The second pass can also shorten every update to the round's
median length, which a minority cannot lengthen beyond an honest one's: the adaptive clipping of FLAME (Nguyen
et al. 2022, arXiv 2101.02281, algorithm 1, line 13), so that a backdoor cannot outweigh others by its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.config.screen import ScreenSettings
from headwater.errors import EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import StateSpec

WIDTH = 1024
"""Numbers of a sketch."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of an update: its L2 norm and its direction [WIDTH], or shorter, as a sketch."""

    norm: float
    direction: Floats


@dataclass(frozen=True, slots=True)
class Mark:
    """How an update stands beside the others of its round.

    Args:
        norm: its L2 norm.
        cosine: of its direction with the median of all.
        suspect: why it stands out: ``scaled``, ``flipped`` or both; empty if it does not.
        left_out: whether it was not merged.
    """

    norm: float
    cosine: float
    suspect: str = ""
    left_out: bool = False

    def row(self) -> dict[str, Any]:
        """As the round's record has it in the client's row."""
        left = {"left_out": True} if self.left_out else {}
        return {"norm": self.norm, "cosine": self.cosine} | (
            {"suspect": self.suspect, **left} if self.suspect else {}
        )


@dataclass(frozen=True)
class ScreenedUpdates:
    """One pass.

    Args:
        participants: whose update came in this pass.
        inner: the rule's own accumulator; None while updates are looked at only.
        looks: by client.
        marks: what the looks came to, once updates are merged otherwise than they came.
        bound: the longest L2 norm at which an update is merged.
    """

    participants: Participants
    inner: Any
    looks: dict[str, Look] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    bound: float = math.inf


class ScreenedAggregator(Aggregator[ScreenedUpdates]):
    """Any rule, with a look at each update.

    Args:
        rule: merges.
        settings: ``[strategy.screen]``.
        key: draws the sketch.
        fewest: updates that the rule can merge, at least.
    """

    additive = False

    def __init__(self, rule: Aggregator[Any], settings: ScreenSettings, key: Key, fewest: int = 1) -> None:
        self.rule, self.settings, self._key, self.fewest = rule, settings, key, fewest
        self.passes = rule.passes + settings.changes
        self._places: tuple[npt.NDArray[np.int64], Floats] | None = None

    def identity(self) -> Mapping[str, Any]:
        """The rule's, the bounds, and what the sketch is drawn with."""
        return {**self.rule.identity(), **self.settings.model_dump(), "screen": self._key.digest.hex()}

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """The rule's, sketches, and updates that are kept for another pass."""
        kept = spec.nbytes * clients if self.passes > 1 else 0
        return max(self.rule.kept_bytes(spec, clients), kept) + 8 * min(WIDTH, spec.numel) * clients

    def require_room(self, spec: StateSpec, clients: int) -> None:  # noqa: D102 - inherited
        self.rule.require_room(spec, clients)

    def init(self, plan: MergePlan) -> ScreenedUpdates:  # noqa: D102 - inherited
        inner = self.rule.init(plan)  # which may refuse the plan
        return ScreenedUpdates(Participants(plan), None if self.settings.changes else inner)

    def add(self, acc: ScreenedUpdates, update: Update) -> ScreenedUpdates:  # noqa: D102 - inherited
        plan, inner = acc.participants.plan, acc.inner
        acc.participants.weight_of(update)
        mark = acc.marks.get(update.client)
        if inner is None:
            self.rule.add(self.rule.init(plan), update)  # refuses now what it would refuse then
        elif mark is None or not mark.left_out:
            inner = self.rule.add(inner, _shortened(update, acc))
        if not acc.marks:
            acc.looks[update.client] = self._look(update, acc.participants)
        acc.participants.enter(update.client)
        return replace(acc, inner=inner)

    def combine(self, left: ScreenedUpdates, right: ScreenedUpdates) -> ScreenedUpdates:  # noqa: D102 - inherited
        left.participants.require_disjoint(right.participants)
        inner = None if left.inner is None else self.rule.combine(left.inner, right.inner)
        left.looks.update(right.looks)
        left.participants.join(right.participants)
        return replace(left, inner=inner)

    def next_pass(self, acc: ScreenedUpdates) -> ScreenedUpdates | None:  # noqa: D102 - inherited
        marks, plan = acc.marks, acc.participants.plan
        if acc.inner is None:
            marks = self.judged(acc.looks)
            inner = self.rule.init(plan)
        else:
            self._require_all(acc)
            inner = self.rule.next_pass(acc.inner)
            if inner is None:
                return None
        bound = acc.bound
        if self.settings.shorten:
            bound = float(np.median([look.norm for look in acc.looks.values()]))
        return ScreenedUpdates(Participants(plan), inner, acc.looks, marks or self.judged(acc.looks), bound)

    def finalize(self, acc: ScreenedUpdates) -> Merged:
        """The rule's result; its report has ``suspects``, ``left_out`` and ``shortened``, how many.

        Raises:
            UpdateRejected: somebody's update did not come again.
        """
        self._require_all(acc)
        merged = self.rule.finalize(acc.inner)
        marks = acc.marks or self.judged(acc.looks)
        found = {
            "suspects": float(sum(bool(mark.suspect) for mark in marks.values())),
            "left_out": float(sum(mark.left_out for mark in marks.values())),
        }
        if self.settings.shorten:
            longer = [name for name, look in acc.looks.items() if look.norm > acc.bound]
            found["shortened"] = float(sum(not marks[name].left_out for name in longer))
        return replace(merged, report={**merged.report, **found}, marks=marks)

    def _require_all(self, acc: ScreenedUpdates) -> None:
        if missing := acc.looks.keys() - acc.participants.clients:
            raise UpdateRejected(
                f"client {min(missing)}", expected="its update in each pass", got="none in a later one"
            )

    def judged(self, looks: Mapping[str, Look]) -> dict[str, Mark]:
        """How each update stands beside the others.

        Raises:
            EmptyRound: there is none.
        """
        if not looks:
            raise EmptyRound("strategy.screen", expected="at least one accepted update", got="none")
        names = sorted(looks)
        norms = np.array([looks[name].norm for name in names])
        directions = np.stack([looks[name].direction for name in names])
        middle, usual = np.median(directions, axis=0), float(np.median(norms))
        lengths = np.linalg.norm(directions, axis=1) * np.linalg.norm(middle)
        cosines = np.divide(directions @ middle, lengths, out=np.zeros(len(names)), where=lengths > 0)
        marks = {}
        for name, norm, cosine in zip(names, norms.tolist(), cosines.tolist(), strict=True):
            why = ["scaled"] * (norm > self.settings.norm * usual) + ["flipped"] * (
                cosine < self.settings.cosine
            )
            marks[name] = Mark(norm, cosine, ", ".join(why))
        suspects = [name for name, mark in marks.items() if mark.suspect]
        few = 2 * len(suspects) < len(names) and len(names) - len(suspects) >= self.fewest
        if self.settings.leave_out and few:
            marks |= {name: replace(marks[name], left_out=True) for name in suspects}
        return marks

    def _look(self, update: Update, participants: Participants) -> Look:
        values: Floats = participants.values_of(update).vector().numpy().astype(np.float64)
        norm = float(np.sqrt(np.square(values).sum()))
        if norm:
            values /= norm
        if values.size <= WIDTH:
            return Look(norm, values)
        places, signs = self._drawn(values.size)
        sketch: Floats = np.bincount(places, weights=values * signs, minlength=WIDTH).astype(np.float64)
        return Look(norm, sketch)

    def _drawn(self, size: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """To which number of a sketch each value is added, and with which sign."""
        if self._places is None:
            draw = self._key.numpy()
            places: npt.NDArray[np.int64] = draw.integers(0, WIDTH, size)
            signs: Floats = (2 * draw.integers(0, 2, size) - 1).astype(np.float64)
            self._places = places, signs
        return self._places


def _shortened(update: Update, acc: ScreenedUpdates) -> Update:
    """The update at no more than the bound's length, and its noise with it."""
    look = acc.looks.get(update.client)
    if look is None or look.norm <= acc.bound:
        return update
    factor = acc.bound / look.norm
    delta = acc.participants.values_of(update) * factor
    return replace(update, delta=delta, noise=update.noise * factor**2)
