"""Who has which rows: :func:`partition` deals the rows of one table out to named clients.

Every rule gives a partition in the strict sense: the clients' rows are disjoint, together they are all
rows, and no client is empty. The same table, settings and key give the same rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.config.partitions import (
    ColumnPartition,
    DirichletPartition,
    FilesPartition,
    IidPartition,
    Partition,
    QuantityPartition,
)
from headwater.data.files.streams import stem
from headwater.data.files.table import FILE_COLUMN, Table, check_name
from headwater.errors import DataError
from headwater.seeds.keys import Key

Indices = npt.NDArray[np.intp]

DRAWS = 100
"""How often a Dirichlet draw that leaves a client below ``min_examples`` is repeated."""


def partition(table: Table, settings: Partition, label_column: str | None, key: Key) -> dict[str, list[int]]:
    """Client name → its rows' indices, ascending.

    Args:
        table: the rows.
        settings: the rule.
        label_column: what a Dirichlet partition without a ``column`` of its own goes by.
        key: decides every random choice.

    Raises:
        DataError: a name that cannot be a client's, two files of one name, fewer rows than clients,
            or no draw that gives every client ``min_examples``.
    """
    match settings:
        case ColumnPartition():
            return _by_column(table, settings.column)
        case FilesPartition():
            return _by_file(table)
        case IidPartition():
            _require_rows(table, settings.clients, 1, "iid")
            order = key.child("order").numpy().permutation(len(table))
            return _named(np.array_split(order, settings.clients))
        case DirichletPartition():
            column = settings.column or label_column
            if column is None:
                raise DataError(
                    "partition 'dirichlet'",
                    expected="a column to go by",
                    got="data without labels",
                    hint='Set data.partition.column, or use kind = "quantity" or "iid".',
                )
            return _dirichlet(table, _groups(table, column), settings, key)
        case QuantityPartition():
            return _dirichlet(table, [np.arange(len(table))], settings, key)


def _by_column(table: Table, column: str) -> dict[str, list[int]]:
    clients: dict[str, list[int]] = {}
    for row in range(len(table)):
        name = table.name(column, row)
        if name not in clients:
            check_name(name, f"{table.where(row)}: column {column!r}")
            clients[name] = []
        clients[name].append(row)
    return clients


def _by_file(table: Table) -> dict[str, list[int]]:
    seen: dict[str, str] = {}
    for path in table.files:
        name = check_name(stem(path), str(path))
        if name in seen:
            raise DataError(
                str(path),
                expected="one file per client",
                got=f"a second file for client {name!r}, beside {seen[name]}",
                hint="Rename one of them.",
            )
        seen[name] = path.name
    return _by_column(table, FILE_COLUMN)


def _groups(table: Table, column: str) -> list[Indices]:
    """Rows of each label, in the labels' order."""
    rows: dict[str, list[int]] = {}
    for row in range(len(table)):
        rows.setdefault(table.name(column, row), []).append(row)
    return [np.array(rows[label], dtype=np.intp) for label in sorted(rows)]


def _dirichlet(
    table: Table, groups: list[Indices], settings: DirichletPartition | QuantityPartition, key: Key
) -> dict[str, list[int]]:
    """Cut each group's rows, in random order, by shares from Dirichlet(alpha) (arXiv 1909.06335).

    With one group this is a skew of quantity alone. Everything is drawn again until every client
    has ``min_examples``; the shares come from one stream, the orders from another.
    """
    clients, least = settings.clients, settings.min_examples
    _require_rows(table, clients, least, settings.kind)
    generator = key.child("shares").numpy()
    alphas = np.full(clients, settings.alpha)
    best = 0
    for _ in range(DRAWS):
        # floor of the cumulated shares: what is left by rounding goes to the next client
        cuts = [(np.cumsum(generator.dirichlet(alphas)) * len(g)).astype(np.intp)[:-1] for g in groups]
        sizes = sum(
            np.diff(np.concatenate(([0], cut, [len(g)]))) for cut, g in zip(cuts, groups, strict=True)
        )
        smallest = int(np.min(sizes))
        if smallest >= least:
            break
        best = max(best, smallest)
    else:
        raise DataError(
            f"partition '{settings.kind}'",
            expected=f"at least {least} examples for each of {clients} clients in one of {DRAWS} draws",
            got=f"at best {best} for the smallest client",
            hint="Raise data.partition.alpha, lower min_examples, or use fewer clients.",
        )
    owner = np.empty(len(table), np.intp)
    for i, (cut, group) in enumerate(zip(cuts, groups, strict=True)):
        order = key.child("order", i).numpy().permutation(group)
        owner[order] = np.searchsorted(cut, np.arange(len(order)), side="right")
    rows = np.argsort(owner, kind="stable")
    return _named(np.split(rows, np.cumsum(np.bincount(owner, minlength=clients))[:-1]))


def _require_rows(table: Table, clients: int, least: int, kind: str) -> None:
    if len(table) < clients * least:
        raise DataError(
            f"partition '{kind}'",
            expected=f"at least {clients * least} rows, for {clients} clients of {least} or more",
            got=str(len(table)),
            hint="Use fewer clients.",
        )


def _named(parts: list[Indices]) -> dict[str, list[int]]:
    width = max(3, len(str(len(parts) - 1)))
    return {f"client-{i:0{width}}": sorted(part.tolist()) for i, part in enumerate(parts)}
