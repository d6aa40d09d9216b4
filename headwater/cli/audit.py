"""``headwater audit``: attack a federation's own training, and tell what was got beside what was promised."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from headwater.bits import enter
from headwater.cli.fitting import FittingTable
from headwater.cli.simulate import defects_kept
from headwater.cli.tables import show
from headwater.config import load_federation
from headwater.privacy.accounting import IN_WORDS
from headwater.process_memory import importing
from headwater.text import json_safe

if TYPE_CHECKING:  # torch
    from headwater.privacy.audit.canaries import CanaryAudit
    from headwater.privacy.audit.membership import Membership
    from headwater.simulation.audit.audit import Audit

SHOWS = (
    "A lower bound above the promised ε would show that noise, clip or ledger is broken.\n"
    "One below it proves no privacy: it is what these attacks got, in one run, where a coin left out every\n"
    "second owner. The promise is for every attack, by whoever sees no more than the adapters."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FEDERATION.toml")
    parser.add_argument(
        "--canaries",
        type=int,
        metavar="N",
        help="owners made up to be found (default: 1000 where there can be)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the audited run in this folder")
    parser.add_argument("--seed", type=int, metavar="N", help="replaces federation.seed")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, not tables")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def run(options: argparse.Namespace) -> int:
    """Train, attack, print; exit code 1 where a lower bound is above its promise."""
    loaded = load_federation(options.file, options.set, seed=options.seed, trackers=False)
    enter(loaded.settings.federation.bits, own_process=options.own_process)  # before torch is imported
    with importing(for_good=options.own_process):
        from headwater.cli.progress import make_observer
        from headwater.server.storage.run_folder import RunFolder
        from headwater.simulation.audit.audit import audit_federation, audited

    with ExitStack() as stack:
        loaded = audited(loaded)
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-audit-")))
        folder = RunFolder.create(out, loaded, {"engine": "inprocess"})
        stack.enter_context(defects_kept(folder.path, "audit the federation"))
        observer = stack.enter_context(make_observer(Console(stderr=True), options.quiet))
        found = audit_federation(loaded, folder, canaries=options.canaries, observer=observer)
    if options.json:
        content = {**asdict(found), "at_least": found.at_least, "broken": found.broken}
        print(json.dumps(json_safe(content), ensure_ascii=False))
    else:
        show(_view(found), sys.stdout)
    return 1 if found.broken else 0


def _view(found: Audit) -> RenderableType:
    bounds = FittingTable()
    bounds.column("ε of", 0)
    for title, weight in (("at least", 0), ("promised", 0), ("guesses right", 3), ("estimate", 1)):
        bounds.column(title, weight, right=True)
    for what, bound, promised in _bounds(found):
        right = f"{bound.right:,} of {bound.guesses:,}"
        shown = "nothing" if promised is None else f"{promised:.2f}"
        bounds.row([what, f"{bound.epsilon:.2f}", shown, right, f"{bound.estimate:.2f}"])
    guessed = FittingTable()
    guessed.column("who was in", 0)
    for title, weight in (("AUC", 0), ("95 %", 1), ("TPR at 1 % FPR", 2), ("in, out", 3)):
        guessed.column(title, weight, right=True)
    for what, one in _members(found):
        auc, hits = one.auc, one.tpr[0.01]
        cells = [what, f"{auc.value:.3f}", f"{auc.low:.3f} to {auc.high:.3f}", f"{hits.value:.3f}"]
        guessed.row([*cells, f"{one.members:,}, {one.strangers:,}"])
    title = f"{found.name}: {found.rounds} rounds, δ {found.delta:g}, seed {found.seed}"
    texts = [Text(sentence) for sentence in _sentences(found)]
    return Group(Text(title, style="bold"), Text(), bounds, Text(), guessed, Text(), *texts)


def _bounds(found: Audit) -> list[tuple[str, CanaryAudit, float | None]]:
    """Of what, the bound, the promise."""
    rows = [("an owner, by its loss", found.owners, found.promised)]
    if found.canaries is not None:
        rows.insert(0, ("an owner, by canaries", found.canaries, found.promised))
    if found.updates is not None:
        rows.append(("a row, in one update", found.updates.bound, found.updates.promised))
    return rows


def _members(found: Audit) -> list[tuple[str, Membership]]:
    rows = [("owners, by the last adapter", found.membership)]
    if found.updates is not None:
        rows.append(("rows, by their owner's update", found.updates.membership))
    return rows


def _sentences(found: Audit) -> list[str]:
    """What it means, for people."""
    told = []
    if found.promised is None:
        told.append("Nothing is promised of owners: there is no noise in [privacy].")
    else:
        relation = IN_WORDS[found.relation or "add-or-remove"].format("one owner")
        budget = "" if found.budget is None else f", of a budget of {found.budget:g}"
        told.append(f"Promised: ε {found.promised:.3f} at δ {found.delta:g}{budget}, {relation}.")
    if found.reproducible:
        told.append("The noise is drawn from the seed: whoever has the file can take it away again.")
    if found.canaries is None:
        told.append("No canaries: they need noise in [privacy], and Poisson cohorts or all owners.")
    if found.updates is None:
        told.append("No owner's update was attacked: it takes a base model and owners of four rows.")
    elif found.updates.promised is None:
        told.append(
            "One update has no noise of its own: the server, and who sees its memory, gets that much."
        )
    confidence = found.owners.confidence
    verdict = "BROKEN: a lower bound is above the promise" if found.broken else "No bound is above a promise"
    told.append(f"{verdict}; each bound holds with {confidence:.0%} confidence.")
    return [*told, SHOWS]
