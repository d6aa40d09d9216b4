"""FederatedData: who has which examples. :meth:`FederatedData.open` and :meth:`FederatedData.own`.

Opening reads every row and tokenises it, so that whatever is wrong with any of them shows, of all at once,
before the first round and not in the middle of it. The examples stay for when a client's turn comes, as far
as they fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from headwater.config.data import NoData
from headwater.config.load import LoadedFederation
from headwater.data.files.layouts import RowData
from headwater.data.files.table import Table, check_name
from headwater.data.opened import OpenedRows, held_out_rows, open_rows, own_rows, require_said_pairs
from headwater.data.row_check import RowCheck, tokenise_rows
from headwater.data.split import sample_examples
from headwater.errors import ConfigError, DataError
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example
from headwater.tasks.inputs import Tokenizer

CACHED_TOKENS = 64_000_000
"""Tokens kept over all clients (an example costs 12 bytes a token in language modelling)."""

MOST_GROUPS = 100
"""That ``evaluation.by`` may tell apart."""


@dataclass(frozen=True)
class ClientData:
    """One client's own split, tokenised."""

    train: Sequence[Example]
    validation: Sequence[Example]

    @cached_property
    def tokens(self) -> int:
        """Tokens in both."""
        return sum(len(e.tokens) for part in (self.train, self.validation) for e in part)


class FederatedData:
    """The data of a federation, or of one of its clients.

    Attributes:
        clients: the clients' names, sorted.
        warnings: what is allowed but worth a look, one sentence each.
        sha256: of the files that were read (hex); empty without files.
    """

    def __init__(
        self,
        settings: RowData | NoData,
        tokenizer: Tokenizer | None,
        rows: OpenedRows,
        key: Key,
        *,
        by: str | None = None,
        check: bool = False,
    ) -> None:
        """Use :meth:`open`, :meth:`own` or :meth:`held_out`."""
        self.clients = tuple(sorted(rows.splits))
        self.warnings = rows.warnings
        self.sha256 = rows.sha256
        self._settings, self._tokenizer, self._by = settings, tokenizer, by
        self._table, self._splits, self._test = rows.table, MappingProxyType(rows.splits), rows.test
        self._test_key = key.child("test")
        self._cache: OrderedDict[str, ClientData] = OrderedDict()
        self._cached_tokens = 0
        self._held_as: dict[str, str] = {}
        self._test_examples: Sequence[Example] | None = None
        if check and tokenizer is not None:
            self._check(tokenizer)

    @staticmethod
    def open(
        loaded: LoadedFederation,
        tokenizer: Tokenizer | None,
        key: Key,
        *,
        check: bool = True,
        on_devices: bool = False,
    ) -> FederatedData:
        """Every client's data, as the organiser of a simulation sees it.

        Args:
            loaded: the federation file.
            tokenizer: the base model's; None is enough where only names and sizes are wanted.
            key: the federation's root key.
            check: tokenise every row now; False where another process has done so.
            on_devices: refuse what :meth:`own` refuses on a device.

        Raises:
            DataError: a file, row, label, name or partition is wrong, or a client is empty; all bad rows
                at once (:class:`headwater.data.files.problems.BadRows`).
        """
        settings = loaded.settings.data
        if isinstance(settings, NoData):
            width = max(4, len(str(settings.clients - 1)))
            # nothing is trained on these rows: only their number counts
            split = list(range(settings.examples)), list[int]()
            splits = {f"client-{i:0{width}}": split for i in range(settings.clients)}
            return FederatedData(settings, None, OpenedRows(None, splits, None, ()), key)
        opened = open_rows(loaded, settings, key)
        if on_devices and opened.table is not None:
            require_said_pairs(opened.table, settings)
        found = FederatedData(settings, tokenizer, opened, key, by=loaded.settings.evaluation.by, check=check)
        # reports go to others: places are said from the file's folder on
        found.warnings = tuple(w.replace(f"{loaded.folder}/", "") for w in found.warnings)
        return found

    @staticmethod
    def own(
        loaded: LoadedFederation, path: Path, name: str, tokenizer: Tokenizer | None, key: Key
    ) -> FederatedData:
        """The data of one client, as its own device sees it: every row of ``path`` is ``name``'s.

        The rows that the simulation gives this client, in the same order, are split the same way here.

        Raises:
            DataError: as in :meth:`open`.
        """
        settings = loaded.settings.data
        check_name(name, "the client's own name")
        if isinstance(settings, NoData):
            splits = {name: (list(range(settings.examples)), list[int]())}
            return FederatedData(settings, None, OpenedRows(None, splits, None, ()), key)
        return FederatedData(
            settings, tokenizer, own_rows(loaded, settings, path, name, key), key, check=True
        )

    @staticmethod
    def counted(loaded: LoadedFederation, name: str, examples: int, key: Key) -> FederatedData:
        """One client with so many examples that are read elsewhere, by a script of its own."""
        check_name(name, "the client's own name")
        splits = {name: (list(range(examples)), list[int]())}
        return FederatedData(loaded.settings.data, None, OpenedRows(None, splits, None, ()), key)

    @staticmethod
    def held_out(loaded: LoadedFederation, tokenizer: Tokenizer | None, key: Key) -> FederatedData:
        """The server's test file alone: no client, and the clients' file is not even looked for.

        Raises:
            DataError: as in :meth:`open`.
        """
        settings = loaded.settings.data
        if isinstance(settings, NoData) or settings.test is None:
            return FederatedData(settings, tokenizer, OpenedRows(None, {}, None, ()), key)
        opened = held_out_rows(loaded, settings, settings.test)
        by = loaded.settings.evaluation.by
        return FederatedData(settings, tokenizer, opened, key, by=by, check=True)

    def dealt(self, owners: Mapping[str, str]) -> FederatedData:
        """The same rows, held by others.

        Args:
            owners: by client, whose rows it holds; several may hold one owner's.

        Raises:
            DataError: no such owner.
        """
        found = copy(self)
        found.clients = tuple(sorted(owners))
        found._splits = MappingProxyType({name: self._of(owner) for name, owner in owners.items()})
        found._held_as = {name: self._held_as.get(owner, owner) for name, owner in owners.items()}
        found._cache = OrderedDict(self._cache)  # tokenised once for all who hold them
        return found

    def has(self, name: str) -> bool:
        """Whether it is one of :attr:`clients`, without a look at the others."""
        return name in self._splits

    def rows(self, name: str) -> tuple[int, int]:
        """Rows in the client's train and validation split. Nothing is tokenised."""
        train, validation = self._of(name)
        return len(train), len(validation)

    def raw(self, name: str) -> list[dict[str, object]]:
        """The client's training rows as they stand in its file: values by column, where it has one.

        Raises:
            DataError: no such client.
        """
        train, _ = self._of(name)
        if self._table is None:
            return [{} for _ in train]
        columns = self._table.columns
        return [{c: v[row] for c, v in columns.items() if v[row] is not None} for row in train]

    def client(self, name: str) -> ClientData:
        """The client's examples; the most recently used stay in memory.

        Raises:
            DataError: no such client, or nothing to train on is left of its texts.
        """
        if self._table is None:  # no rows, only their number
            return ClientData(*(self._examples(None, rows) for rows in self._of(name)))
        key = self._held_as.get(name, name)
        found = self._cache.pop(key, None)
        if found is not None:
            self._cached_tokens -= found.tokens
        else:
            train, validation = self._of(name)
            found = ClientData(self._examples(self._table, train), self._examples(self._table, validation))
            if not found.train:
                raise _nothing_to_predict(name)
        self._cache[key] = found
        self._cached_tokens += found.tokens
        while len(self._cache) > 1 and self._cached_tokens > CACHED_TOKENS:
            self._cached_tokens -= self._cache.popitem(last=False)[1].tokens
        return found

    def test(self) -> Sequence[Example] | None:
        """The server's held-out examples; None if the federation file names none."""
        if self._test_examples is None and self._test is not None:
            self._test_examples = self._sampled(self._examples(self._test, range(len(self._test)), self._by))
        return self._test_examples

    def _check(self, tokenizer: Tokenizer) -> None:
        """Tokenise every row that is used; raise all that cannot be; say what was done to the others."""
        if isinstance(self._settings, NoData):
            return
        check = RowCheck(self._settings, tokenizer)
        if self._table is not None:
            for name in self.clients:
                found = ClientData(*(check.examples(self._table, rows) for rows in self._splits[name]))
                if not found.train and check.clean:
                    check.problems.add(_nothing_to_predict(name))
                if self._cached_tokens + found.tokens <= CACHED_TOKENS:
                    self._cache[name] = found
                    self._cached_tokens += found.tokens
        if self._test is not None:
            if self._by is not None:
                _require_groups(self._test, self._by)
            self._test_examples = self._sampled(check.examples(self._test, range(len(self._test)), self._by))
        check.settle()
        check.problems.raise_any()
        self.warnings += check.report.sentences()

    def _sampled(self, examples: Sequence[Example]) -> Sequence[Example] | None:
        if self._test is None or isinstance(self._settings, NoData):
            return None
        chosen = sample_examples(examples, self._settings.max_test_examples, self._test_key)
        return [examples[i] for i in chosen]

    def _of(self, name: str) -> tuple[list[int], list[int]]:
        if name not in self._splits:
            shown = ", ".join(self.clients[:5]) + (", …" if len(self.clients) > 5 else "")
            raise DataError(f"client {name!r}", expected=f"one of the clients {shown}", got="another name")
        return self._splits[name]

    def _examples(self, table: Table | None, rows: Sequence[int], by: str | None = None) -> Sequence[Example]:
        if table is None or isinstance(self._settings, NoData):
            return (_NOTHING,) * len(rows)
        if self._tokenizer is None:
            raise ConfigError(
                "the data", expected="a tokenizer", got="none", hint="Open it with the base model's."
            )
        return tokenise_rows(table, rows, self._settings, self._tokenizer, by=by)


_NOTHING = Example(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64))


def _require_groups(table: Table, by: str) -> None:
    """Refuse a column that is not there, or tells more groups apart than a record of a round should have."""
    table.require(by)
    found = {str(value) for value in table.columns.get(by, ())}
    if len(found) > MOST_GROUPS:
        raise DataError(
            f"evaluation.by {by!r}",
            expected=f"a column of at most {MOST_GROUPS} values in the test rows",
            got=f"{len(found):,}",
            hint="Name another, or leave it out.",
        )


def _nothing_to_predict(name: str) -> DataError:
    return DataError(f"client {name!r}", expected="a train split with something to predict", got="none")
