"""What ``headwater data check`` found: :func:`show` for people, :func:`as_dict` for programs. No torch.

Texts and names come from files of anyone: they are printed as plain text, never as markup, and without
control characters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from headwater.cli.fitting import FittingTable
from headwater.data.files.layouts import RowData
from headwater.data.files.problems import Problems
from headwater.data.remarks import contradictions, duplicates, line_breaks, rows_of, unread_columns
from headwater.data.survey import Owner, SampleRow, Spans, Survey, percentiles, spread
from headwater.text import plain, visible

MOST_OWNERS = 40
_LONGEST = 600
"""Characters of a row that is shown."""


@dataclass
class Checked:
    """All that is known.

    Args:
        path: what was looked at.
        settings: ``[data]``; None where nobody knows what the columns are.
        survey: the owners' rows.
        test: the server's held-out rows.
        warnings: what is allowed but worth a look.
    """

    path: str
    settings: RowData | None
    survey: Survey
    test: Survey | None
    warnings: list[str]
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    files: int = 0
    read: int = 0
    unread_splits: tuple[str, ...] = ()
    problems: Problems = field(default_factory=Problems)
    samples: list[SampleRow] = field(default_factory=list)

    def notices(self) -> list[str]:
        """One sentence for everything that is worth a look."""
        if self.splits:  # a federation's are made where it is opened
            return self.warnings
        found = []
        for layout, files in self.survey.layouts.items():
            which = "" if self.files == 1 else f"{len(files)} of {self.files} files: "
            found.append(f"{which}recognised as {layout}")
        if self.survey.rows:
            found += unread_columns(self.survey.unread, "the data")
        if self.survey.line_breaks[0]:
            found.append(line_breaks(*self.survey.line_breaks))
        if self.survey.duplicates[0]:
            found.append(duplicates(*self.survey.duplicates))
        if self.survey.contradictions[0]:
            found.append(contradictions(*self.survey.contradictions))
        found += self.unread_splits
        if self.settings is None:
            found.append(
                "the columns do not say what is to be learnt: set data.kind and its columns, for example "
                "--set data.kind=classification --set data.text=body"
            )
        return [*found, *self.warnings]


def as_dict(checked: Checked) -> dict[str, Any]:
    """Everything, as ``--json`` prints it."""
    owners = {name: _owner(owner) for name, owner in checked.survey.owners.items()}
    for name, (train, validation) in checked.splits.items():
        owners[name] |= {"train": train, "validation": validation}
    return {
        "path": checked.path,
        "kind": None if checked.settings is None else checked.settings.kind,
        "rows_read": checked.read,
        "rows": checked.survey.rows,
        "bad_rows": checked.problems.count,
        "problems": [str(problem) for problem in checked.problems.first],
        "columns": {name: dict(column.types) for name, column in checked.survey.columns.items()},
        "recognised": sorted(checked.survey.layouts),
        "owners": owners,
        "test": None if checked.test is None else _owner(checked.test.owners["test"]),
        "warnings": checked.notices(),
        "samples": [
            {"where": s.where, "owner": s.owner, "label": s.label, "text": marked(s.spans)}
            for s in checked.samples
        ],
    }


def show(checked: Checked, console: Console) -> None:
    """Print it."""
    survey, settings = checked.survey, checked.settings
    kind = "of unknown kind" if settings is None else settings.kind
    owners = f"{len(survey.owners):,} owner{'' if len(survey.owners) == 1 else 's'}"
    bad = f", {checked.problems.count:,} cannot be used" if checked.problems.count else ""
    kept = rows_of(survey.rows)
    if survey.rows != checked.read and not bad:
        kept = f"{survey.rows:,} of {rows_of(checked.read)}"
    console.print(Text(f"{plain(checked.path)}: {kind}, {owners}, {kept}{bad}", style="bold"), soft_wrap=True)
    console.print(_columns(survey), soft_wrap=True)
    console.print()
    console.print(_table(checked))
    if notices := checked.notices():
        console.print()
        for notice in notices:
            console.print(Text(f"- {plain(notice, 1000)}", style="yellow"), soft_wrap=True)
    for sample in checked.samples:
        console.print()
        console.print(Text(f"{plain(sample.where)} ({plain(sample.owner, 64)})", style="dim"), soft_wrap=True)
        colour = console.is_terminal and not console.no_color
        spans = (
            sample.spans if sample.label is None else [*sample.spans, (" → ", False), (sample.label, True)]
        )
        console.print(rendered(spans, colour=colour), soft_wrap=True)
    if checked.samples:
        sign = "coloured" if console.is_terminal and not console.no_color else "in [[ ]]"
        console.print(Text(f"\nWhat is learnt is {sign}.", style="dim"))


def marked(spans: Spans) -> str:
    """A row as one text, with what has loss in ``[[…]]``."""
    return "".join(f"[[{text}]]" if loss else text for text, loss in spans)


def rendered(spans: Spans, *, colour: bool) -> Text:
    """A row for a screen, cut where it is long."""
    shown, left = Text(), _LONGEST
    for text, loss in spans:
        cut = text if len(text) <= left else text[:left] + "…"
        clean = "\n".join(visible(line) for line in cut.split("\n"))
        if loss and not colour:
            clean = f"[[{clean}]]"
        shown.append(clean, style="green" if loss and colour else "")
        left -= len(cut)
        if left <= 0:
            break
    return shown


def _columns(survey: Survey) -> Text:
    parts = []
    for name, column in list(survey.columns.items())[:30]:
        types = " or ".join(f"{kind}" for kind, _ in column.types.most_common(3)) or "empty"
        count = sum(column.types.values())
        parts.append(f"{plain(name, 40)} ({types}{'' if count == survey.rows else f' in {count:,} rows'})")
    more = f", {len(survey.columns) - 30} more" if len(survey.columns) > 30 else ""
    return Text("columns: " + ", ".join(parts) + more)


def _table(checked: Checked) -> FittingTable:
    survey, tokens = checked.survey, any(o.tokens for o in checked.survey.owners.values())
    labelled = checked.settings is not None and checked.settings.has_labels
    by_token = checked.settings is None or checked.settings.by_token
    table = FittingTable()
    table.column("owner", 0)
    table.column("rows", 9, right=True)
    if checked.splits:
        table.column("train", 5, right=True)
        table.column("validation", 4, right=True)
    unit = "tokens" if tokens else "characters"
    for number, name in enumerate(("median", "90 %", "longest")):
        table.column(f"{unit}: {name}" if not number else name, 8 - number, right=True)
    if tokens and by_token:
        table.column("examples", 3, right=True)
        table.column("with loss", 6, right=True)
    if labelled:
        table.column("labels", 7)
    if any(o.numbers for o in survey.owners.values()):
        table.column("target: least, mean, greatest", 7)
    rows = list(survey.owners.items())
    for name, owner in rows[:MOST_OWNERS]:
        table.row(_cells(plain(name, 64), owner, checked, tokens, labelled))
    if len(rows) > MOST_OWNERS:
        rest = Owner()
        for _, owner in rows[MOST_OWNERS:]:
            _merge(rest, owner)
        table.row(_cells(f"{len(rows) - MOST_OWNERS:,} more", rest, checked, tokens, labelled))
    if checked.test is not None:
        table.row(_cells("(test)", checked.test.owners["test"], checked, tokens, labelled), style="dim")
    return table


def _cells(name: str, owner: Owner, checked: Checked, tokens: bool, labelled: bool) -> list[str]:
    found = percentiles(owner.tokens if tokens else owner.characters)
    cells = [name, f"{owner.rows:,}"]
    if checked.splits:
        train, validation = checked.splits.get(name, ("", ""))
        cells += [f"{train:,}" if train != "" else "", f"{validation:,}" if validation != "" else ""]
    cells += [f"{found[key]:,}" if found else "" for key in ("p50", "p90", "max")]
    if tokens and (checked.settings is None or checked.settings.by_token):
        cells += [f"{len(owner.tokens):,}", f"{owner.loss_tokens:,}"]
    if labelled:
        cells.append(_labels(owner.labels))
    if owner.numbers:
        cells.append(", ".join(f"{value:.5g}" for value in spread(owner.numbers).values()))
    return cells


def _labels(labels: Counter[str]) -> str:
    shown = [f"{plain(label, 24)} {count:,}" for label, count in labels.most_common(6)]
    return ", ".join(shown) + (f", {len(labels) - 6} more" if len(labels) > 6 else "")


def _merge(into: Owner, owner: Owner) -> None:
    into.rows += owner.rows
    into.labels.update(owner.labels)
    into.numbers.extend(owner.numbers)
    into.characters.extend(owner.characters)
    into.tokens.extend(owner.tokens)
    into.loss_tokens += owner.loss_tokens


def _owner(owner: Owner) -> dict[str, Any]:
    return {
        "rows": owner.rows,
        "labels": dict(owner.labels),
        **({"target": spread(owner.numbers)} if owner.numbers else {}),
        "characters": percentiles(owner.characters),
        "tokens": percentiles(owner.tokens),
        "examples": len(owner.tokens),
        "loss_tokens": owner.loss_tokens,
    }
