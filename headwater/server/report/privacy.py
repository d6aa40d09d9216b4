"""What the run has spent of its owners' privacy, for the report; and what that covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from headwater.server.report.data import Run
from headwater.text import finite, number, plain

COVERED = (
    "It bounds what the adapters of all rounds together tell of one owner to whoever sees nothing else. "
    "Losses, evaluations, sizes, who took part and all else in the run folder are not covered, nor does it "
    "hide anything from a server that draws the noise itself."
)
FOR: Mapping[str, str] = {
    "add-or-remove": "all data of one owner added or removed",
    "replace-one": "all data of one owner replaced by another's",
    "zero-out": "all updates of one owner set to nothing; correlated noise is paid once for all rounds",
}
REPRODUCIBLE = "The noise can be drawn again from the seed: this run has no privacy."


class Spent(NamedTuple):
    """One round's line: ε so far by each bound, and of the sum, C and the noise of a value of the delta."""

    round: int
    epsilon: str
    rdp: str
    pld: str
    clip: str
    noise_std: str


class Privacy(NamedTuple):
    """The section: a sentence, what it covers, a warning or nothing, and the rounds."""

    sentence: str
    covered: str
    warning: str
    rows: list[Spent]


def privacy(run: Run) -> Privacy | None:
    """The section; None of a run without noise."""
    noised = [record for record in run.rounds if record.privacy]
    if not noised:
        return None
    last = noised[-1].privacy
    epsilon, delta, budget = (finite(last.get(name)) for name in ("epsilon", "delta", "budget"))
    of = "" if budget is None else f" of a budget of {number(budget)}"
    relation = FOR.get(str(last.get("relation")), f"the relation {plain(last.get('relation'))}")
    sentence = f"ε = {_exact(epsilon)}{of} at δ = {plain(delta)}, for {relation}."
    rows = [
        Spent(
            record.round,
            *(_exact(finite(record.privacy.get(name))) for name in ("epsilon", "epsilon_rdp", "epsilon_pld")),
            *(number(finite(record.merge.get(name))) for name in ("clip", "noise_std")),
        )
        for record in run.shown
        if record.privacy
    ]
    return Privacy(sentence, COVERED, REPRODUCIBLE if last.get("reproducible") else "", rows)


def _exact(epsilon: float | None) -> str:
    return number(None) if epsilon is None else f"{epsilon:.3f}"
