"""write_table: the faults that a run injected, as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HEAD = """# Faults

{origin} A daemon and three agents run as processes of their own, with TLS
between them; the tests disturb them in the ways below. Where the result is *equal*, the state after
every round and the adapter of the disturbed run have the hashes that `headwater simulate` gives on the
same federation file.

{count} kinds of faults, {times} injections, {runs} tests, {minutes:.0f} minutes, {failed} failed, {known}
with a known defect.
*Sent again* counts updates that agents sent beyond one for each client and round: work that was asked for
twice, not a loss.

| # | Fault | Times | Seen | Result | Sent again | Seconds |
| --: | :-- | --: | :-- | :-- | --: | --: |
"""


_WHOLE = "One run of `make test-faults` on commit {commit} wrote this page."
_PARTS = (
    "This page is put together from runs of parts of the suite, at different commits and on a machine that "
    "was busy with other work; each row is a test's latest run. One run of `make test-faults` replaces it."
)


def write_table(rows: Sequence[dict[str, Any]], *, commit: str) -> str:
    """Markdown; ``commit`` if the rows are of one run of the whole suite, else empty."""
    faults = [(row, fault) for row in rows for fault in row["faults"]]
    text = _HEAD.format(
        origin=_WHOLE.format(commit=commit) if commit else _PARTS,
        count=len(faults),
        times=sum(fault["times"] for _, fault in faults),
        runs=len(rows),
        minutes=sum(row["seconds"] for row in rows) / 60,
        failed=sum(not row["passed"] and not row.get("known") for row in rows),
        known=sum(bool(row.get("known")) for row in rows),
    )
    for number, (row, fault) in enumerate(faults, 1):
        last = fault is row["faults"][-1]
        again = sum(o.get("sent_again", 0) for o in row["outcomes"])
        cells = [
            str(number),
            fault["fault"],
            str(fault["times"]),
            fault["seen"],
            _result(row),
            str(again) if last and row["outcomes"] else "",
            f"{row['seconds']:.0f}" if last else "",
        ]
        text += "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |\n"
    return text


def _result(row: dict[str, Any]) -> str:
    if row.get("known"):
        return f"**known defect**: {row['known']}"
    if not row["passed"]:
        return "**failed**"
    equal = [o for o in row["outcomes"] if "adapter" in o]
    said = "; ".join(o["said"] for o in row["outcomes"] if "said" in o)
    return ("equal" + (f"; {said}" if said else "")) if equal else said or "as expected"
