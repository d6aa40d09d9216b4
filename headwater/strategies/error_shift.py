"""EF21 at the server: the sum of all that was ever sent, of which each round is a part.

Richtárik, Sokolov, Fatkhullin 2021 (arXiv 2106.05203); with partial participation EF21-PP (Fatkhullin et al.
2021, arXiv 2110.03294): client i sends c = C(delta − g_i) and, once that counts, adds it to g_i. The server
keeps G = Σ g_i alone, over all clients: G ← G + Σ c of the round, and moves by G / n. Who does not take part
keeps its g_i, which goes on counting; who is new has g_i = 0. So every update must count the same in every
round and go into the sum as it was sent: equal weights, plain means, no staleness, no shortening
(``config.consistency`` refuses the rest). Fp32 rounds G once a round, by 2⁻²⁴ of a value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from headwater.merging.aggregator import Merged
from headwater.state import AdapterState


@dataclass(frozen=True, slots=True)
class ShiftPlan:
    """What a round with EF21 counts with.

    Args:
        total: G before the round.
        clients: n: all that have examples, whether they take part or not.
    """

    total: AdapterState
    clients: int

    def after(self, merged: Merged) -> Merged:
        """The round with G / n in place of the mean of what was sent, and the new G.

        Args:
            merged: the mean of the round's updates, each of weight 1.
        """
        total = self.total + merged.delta * float(merged.weight)
        delta = total * (1 / self.clients)
        report = {**merged.report, "delta_norm": delta.norm(), "sent_norm": merged.delta.norm()}
        return replace(merged, delta=delta, shift=total, report=report)
