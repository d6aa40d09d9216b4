"""Errors of matrix mechanisms at one price, by rounds, to ``results/mechanisms.json`` and a table.

Each is the standard deviation of the worst prefix sum's noise (of a value of the model, over the whole run)
when all mechanisms cost the same: sensitivity × error, for owners who take part at most every ``separation``
rounds. Nothing is drawn; the figures are exact but for the tree's sensitivity over several participations,
which is the bound of 2306.08153, algorithm 4. Then CPU time of a round's noise. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from headwater.privacy.correlated.mechanism import Mechanism, Participation
from headwater.privacy.correlated.optimise import best_bands, best_blt
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree

RESULTS = Path(__file__).parent / "results" / "mechanisms.json"
KINDS = ("independent", "tree", "banded", "blt-1", "blt-2", "blt-4")
MOST_BANDS = 64


def mechanism(kind: str, who: Participation) -> Mechanism:
    """The best of its kind."""
    if kind == "independent":
        return Banded((1.0,))
    if kind == "tree":
        return Tree(who.rounds)
    if kind == "banded":
        return best_bands(who, min(who.separation, who.rounds, MOST_BANDS))
    return best_blt(who, int(kind.removeprefix("blt-")))


def errors(rounds: int, separation: int) -> dict[str, float]:
    """Of each kind."""
    who = Participation(rounds, separation)
    row = {kind: mechanism(kind, who).max_error(who) for kind in KINDS}
    return {"rounds": rounds, "separation": separation, "participations": who.times, **row}


def seconds(kind: str, values: int, rounds: int) -> dict[str, float | str]:
    """CPU of one round's correlation, without the draw of independent noise, and memory."""
    who = Participation(rounds, rounds)
    made = mechanism(kind, who)
    memory, z = made.init(values), np.random.default_rng(0).standard_normal(values)
    start = time.process_time()
    for _ in range(20):
        _, memory = made.solve(memory, z)
    return {
        "kind": kind,
        "ms_a_round": (time.process_time() - start) / 20 * 1e3,
        "bytes_a_value": 8 * made.buffers,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, nargs="+", default=[4, 16, 64, 256, 1024])
    parser.add_argument("--apart", type=int, default=16, help="the separation besides one participation")
    parser.add_argument("--values", type=int, default=100_000)
    arguments = parser.parse_args()
    table = []
    for apart in (None, arguments.apart):
        for rounds in arguments.rounds:
            if apart is None or apart < rounds:
                table.append(errors(rounds, rounds if apart is None else apart))
                print(json.dumps(table[-1]), flush=True)
    costs = [seconds(kind, arguments.values, max(arguments.rounds)) for kind in KINDS]
    RESULTS.write_text(
        json.dumps({"errors": table, "values": arguments.values, "costs": costs}, indent=1) + "\n"
    )
    print(f"\n| rounds | separation | {' | '.join(KINDS)} |\n|{'---|' * (2 + len(KINDS))}")
    for row in table:
        figures = " | ".join(f"{row[kind]:.2f}" for kind in KINDS)
        print(f"| {row['rounds']:.0f} | {row['separation']:.0f} | {figures} |")
    for cost in costs:
        print(cost)


if __name__ == "__main__":
    main()
