"""FederatedData: who has which examples. :meth:`FederatedData.open` and :meth:`FederatedData.own`.

Opening reads and checks every row, so that a bad label shows before the first round and not in the
middle of it. Tokenising waits until a client's turn comes.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from headwater.config.federation import CausalLMData, ClassificationData, InstructionData, NoData
from headwater.config.load import LoadedFederation
from headwater.data.batches import Example
from headwater.data.formats import files_sha256, read_rows
from headwater.data.partition import partition
from headwater.data.split import sample, split
from headwater.data.table import Table, check_name
from headwater.data.tokenise import (
    Tokenizer,
    label_of,
    messages_of,
    tokenise_causal,
    tokenise_classification,
    tokenise_instruction,
)
from headwater.errors import ConfigError, DataError
from headwater.protocol.keys import Key

RowData = ClassificationData | CausalLMData | InstructionData

CACHED_TOKENS = 64_000_000
"""Tokens kept over all clients (an example costs 12 bytes a token in language modelling)."""


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
        *,
        table: Table | None = None,
        splits: dict[str, tuple[list[int], list[int]]],
        test: tuple[Table, Key] | None = None,
        warnings: tuple[str, ...] = (),
        sha256: str = "",
    ) -> None:
        """Use :meth:`open`, :meth:`own` or :meth:`held_out`."""
        self.clients = tuple(sorted(splits))
        self.warnings = warnings
        self.sha256 = sha256
        self._settings, self._tokenizer = settings, tokenizer
        self._table, self._splits, self._test = table, MappingProxyType(splits), test
        self._cache: OrderedDict[str, ClientData] = OrderedDict()
        self._cached_tokens = 0

    @staticmethod
    def open(loaded: LoadedFederation, tokenizer: Tokenizer | None, key: Key) -> FederatedData:
        """Every client's data, as the organiser of a simulation sees it.

        Args:
            loaded: the federation file.
            tokenizer: the base model's; None is enough where only names and sizes are wanted.
            key: the federation's root key.

        Raises:
            DataError: a file, row, label, name or partition is wrong, or a client is empty.
        """
        settings = loaded.settings.data
        if isinstance(settings, NoData):
            width = max(4, len(str(settings.clients - 1)))
            # nothing is trained on these rows: only their number counts
            rows = list(range(settings.examples))
            return FederatedData(
                settings, None, splits={f"client-{i:0{width}}": (rows, []) for i in range(settings.clients)}
            )
        table = _read(loaded, settings.path, settings)
        label = settings.label if isinstance(settings, ClassificationData) else None
        parts = partition(table, settings.partition, label, key.child("partition"))
        splits = {name: _split(name, table, rows, settings, key) for name, rows in parts.items()}
        test = _read(loaded, settings.test, settings) if settings.test is not None else None
        warnings = _single_class(table, splits, settings) + _shared(table, test, settings)
        return FederatedData(
            settings,
            tokenizer,
            table=table,
            splits=splits,
            test=None if test is None else (test, key.child("test")),
            warnings=warnings,
            sha256=files_sha256([loaded.path(p) for p in (settings.path, settings.test) if p is not None]),
        )

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
            return FederatedData(settings, None, splits={name: (list(range(settings.examples)), [])})
        table = _read(loaded, str(path), settings)
        splits = {name: _split(name, table, list(range(len(table))), settings, key)}
        warnings = _single_class(table, splits, settings)
        return FederatedData(settings, tokenizer, table=table, splits=splits, warnings=warnings)

    @staticmethod
    def held_out(loaded: LoadedFederation, tokenizer: Tokenizer | None, key: Key) -> FederatedData:
        """The server's test file alone: no client, and the clients' file is not even looked for.

        Raises:
            DataError: as in :meth:`open`.
        """
        settings = loaded.settings.data
        if isinstance(settings, NoData) or settings.test is None:
            return FederatedData(settings, tokenizer, splits={})
        test = _read(loaded, settings.test, settings)
        return FederatedData(
            settings,
            tokenizer,
            splits={},
            test=(test, key.child("test")),
            sha256=files_sha256([loaded.path(settings.test)]),
        )

    def rows(self, name: str) -> tuple[int, int]:
        """Rows in the client's train and validation split. Nothing is tokenised."""
        train, validation = self._of(name)
        return len(train), len(validation)

    def client(self, name: str) -> ClientData:
        """The client's examples, tokenised on first use; the most recently used stay in memory.

        Raises:
            DataError: no such client, or nothing to train on is left of its texts.
        """
        found = self._cache.pop(name, None)
        if found is not None:
            self._cached_tokens -= found.tokens
        else:
            train, validation = self._of(name)
            found = ClientData(self._examples(self._table, train), self._examples(self._table, validation))
            if not found.train:
                raise DataError(
                    f"client {name!r}", expected="a train split with something to predict", got="none"
                )
        self._cache[name] = found
        self._cached_tokens += found.tokens
        while len(self._cache) > 1 and self._cached_tokens > CACHED_TOKENS:
            self._cached_tokens -= self._cache.popitem(last=False)[1].tokens
        return found

    def test(self) -> Sequence[Example] | None:
        """The server's held-out examples; None if the federation file names none."""
        return self._test_examples

    @cached_property
    def _test_examples(self) -> Sequence[Example] | None:
        if self._test is None or isinstance(self._settings, NoData):
            return None
        table, key = self._test
        found = self._examples(table, range(len(table)))
        chosen = sample(range(len(found)), self._settings.max_test_examples, key)
        return [found[i] for i in chosen]

    def _of(self, name: str) -> tuple[list[int], list[int]]:
        if name not in self._splits:
            shown = ", ".join(self.clients[:5]) + (", …" if len(self.clients) > 5 else "")
            raise DataError(f"client {name!r}", expected=f"one of the clients {shown}", got="another name")
        return self._splits[name]

    def _examples(self, table: Table | None, rows: Sequence[int]) -> Sequence[Example]:
        if table is None:
            return (_NOTHING,) * len(rows)
        if self._tokenizer is None:
            raise ConfigError(
                "the data", expected="a tokenizer", got="none", hint="Open it with the base model's."
            )
        match self._settings:
            case ClassificationData():
                return tokenise_classification(table, rows, self._settings, self._tokenizer)
            case CausalLMData():
                return tokenise_causal(table, rows, self._settings, self._tokenizer)
            case InstructionData():
                return tokenise_instruction(table, rows, self._settings, self._tokenizer)
            case NoData():
                return ()


_NOTHING = Example(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64))


def _read(loaded: LoadedFederation, path: str, settings: RowData) -> Table:
    """Read a file and look at every value that will be used."""
    if isinstance(settings, ClassificationData) and len(set(settings.labels)) != len(settings.labels):
        raise ConfigError("data.labels", expected="labels that differ", got=repr(list(settings.labels)))
    table = read_rows(loaded.path(path))
    for row in range(len(table)):
        match settings:
            case ClassificationData():
                table.text(settings.text, row)
                label_of(table, row, settings)
            case CausalLMData():
                table.text(settings.text, row)
            case InstructionData():
                messages_of(table, row, settings)
    return table


def _split(
    name: str, table: Table, rows: list[int], settings: RowData, key: Key
) -> tuple[list[int], list[int]]:
    if not rows:
        raise DataError(f"client {name!r}", expected="at least one row", got="none")
    share = max(1, math.ceil(settings.fraction * len(rows)))
    limit = min(share, settings.max_examples_per_client or share)
    kept = sample(rows, limit, key.child("subsample", name))
    labels = None
    if isinstance(settings, ClassificationData):
        labels = [table.name(settings.label, row) for row in kept]
    return split(kept, settings.validation_fraction, key.child("split", name), labels)


def _single_class(
    table: Table, splits: dict[str, tuple[list[int], list[int]]], settings: RowData
) -> tuple[str, ...]:
    if not isinstance(settings, ClassificationData):
        return ()
    found = []
    for name, (train, validation) in sorted(splits.items()):
        labels = {table.name(settings.label, row) for row in (*train, *validation)}
        if len(labels) == 1:
            found.append(f"{name!r} (only {labels.pop()!r})")
    if not found:
        return ()
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    clients = "1 client has" if len(found) == 1 else f"{len(found)} clients have"
    return (f"{clients} a single class: {shown}",)


def _shared(table: Table, test: Table | None, settings: RowData) -> tuple[str, ...]:
    """How many test rows are also in the clients' data, word for word."""
    if test is None:
        return ()
    known = {_content(table, row, settings) for row in range(len(table))}
    count = sum(_content(test, row, settings) in known for row in range(len(test)))
    if not count:
        return ()
    return (f"{count} of {len(test)} test rows have a text that is also in the clients' data",)


def _content(table: Table, row: int, settings: RowData) -> str:
    if isinstance(settings, InstructionData):
        return json.dumps(messages_of(table, row, settings))
    return table.text(settings.text, row).strip()
