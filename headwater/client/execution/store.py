"""ClientStore: what a client keeps between rounds.

Error feedback, its control variate, coefficients of seeds, the part of the adapter that is its own, what its
training has told of its rows, and the global states that it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from headwater.client.execution.control_variate import ControlVariate, from_bytes, to_bytes
from headwater.client.execution.held_states import HeldStates, SharedStates, StatesInFolder, StatesInMemory
from headwater.client.execution.record_file import RecordFile
from headwater.client.execution.seed_state_file import (
    Versions,
    same,
    sums_from_bytes,
    sums_to_bytes,
    with_version,
)
from headwater.compression.feedback import FeedbackState
from headwater.compression.feedback_file import pending_round, read_state, to_pieces
from headwater.compression.feedback_file_before import Readable
from headwater.errors import StorageError
from headwater.files import clear_temporaries, file_name, make_folder, write_atomically
from headwater.privacy.events import Event, from_json, to_json
from headwater.privacy.ledger import Ledger
from headwater.seeds.directions import Integers
from headwater.state import StateSpec

T = TypeVar("T")

STORE_FILE = "store.sqlite"
"""In a simulation's folder of the clients: what all of them keep."""
LEDGER = "privacy.jsonl"
"""Of a client: what its trainings have told of its rows."""
_FILES = {".feedback", ".control", ".own", ".sums"}


class ClientStore(ABC):
    """Feedback states and versions of coefficients by client name.

    Attributes:
        states: the global states that are held, by name, whichever client has been sent them.
    """

    states: HeldStates

    @abstractmethod
    def load(self, client: str, spec: StateSpec) -> FeedbackState:
        """The state last saved; the empty one for a new client.

        Raises:
            StorageError: what is stored is damaged or cannot be read.
            SpecMismatch: it is of another spec.
        """

    def pending_round(self, client: str, spec: StateSpec) -> int | None:
        """The round of the client's pending update; None without one.

        Raises:
            StorageError, SpecMismatch: as :meth:`load`, or only there.
        """
        pending = self.load(client, spec).pending
        return None if pending is None else pending.round

    @abstractmethod
    def save(self, client: str, state: FeedbackState) -> None:
        """Replace the client's state: whole or not at all.

        Raises:
            StorageError: it could not be written; the old one is intact.
        """

    @abstractmethod
    def load_sums(self, client: str) -> Mapping[int, Integers]:
        """The coefficients that are kept, by version.

        Empty for a new client, and where what is stored is damaged: the server can send everything again.
        """

    @abstractmethod
    def save_sums(self, client: str, version: int, sums: Integers, base: int = 0) -> None:
        """Keep the coefficients of ``version``, whole or not at all. The least recently used one gives way.

        Args:
            client: whose.
            version: of the coefficients, at least 1.
            sums: int64 [n].
            base: the version that they were made from, which stays: until it hears an answer, the server
                sends what changed since that one. 0 for none.

        Raises:
            StorageError: it could not be written; what was kept is intact.
        """

    @abstractmethod
    def load_control(self, client: str, spec: StateSpec) -> ControlVariate:
        """The control variate last saved; zero for a new client.

        Raises:
            StorageError: what is stored is damaged or cannot be read.
            SpecMismatch: it is of another spec.
        """

    @abstractmethod
    def save_control(self, client: str, kept: ControlVariate) -> None:
        """Replace the client's control variate: whole or not at all.

        Raises:
            StorageError: it could not be written; the old one is intact.
        """

    @abstractmethod
    def load_own(self, client: str, spec: StateSpec) -> ControlVariate:
        """The part of the adapter that is the client's own, in two steps as a control variate is kept.

        None for a new client. Raises as :meth:`load_control`.

        Args:
            client: whose.
            spec: of that part.
        """

    @abstractmethod
    def save_own(self, client: str, kept: ControlVariate) -> None:
        """Replace it: whole or not at all.

        Raises:
            StorageError: it could not be written; the old one is intact.
        """

    @abstractmethod
    def load_spent(self, client: str) -> tuple[Event, ...]:
        """The client's privacy ledger: all that its trainings with noise have told.

        Raises:
            StorageError: it is damaged or cannot be read.
        """

    @abstractmethod
    def add_spent(self, client: str, event: Event) -> None:
        """Add to the client's privacy ledger. Train only then.

        Raises:
            StorageError: it could not be written.
        """


class MemoryStore(ClientStore):
    """Keeps states as long as the process lives."""

    def __init__(self) -> None:
        self._states: dict[str, FeedbackState] = {}
        self._controls: dict[str, ControlVariate] = {}
        self._own: dict[str, ControlVariate] = {}
        self._sums: dict[str, Versions] = {}
        self._spent: dict[str, tuple[Event, ...]] = {}
        self.states = StatesInMemory()

    def load(self, client: str, spec: StateSpec) -> FeedbackState:  # noqa: D102 - inherited
        return self._states.get(client, FeedbackState())

    def save(self, client: str, state: FeedbackState) -> None:  # noqa: D102 - inherited
        self._states[client] = state

    def load_sums(self, client: str) -> Mapping[int, Integers]:  # noqa: D102 - inherited
        return dict(self._sums.get(client, ()))

    def save_sums(self, client: str, version: int, sums: Integers, base: int = 0) -> None:  # noqa: D102 - inherited
        self._sums[client] = with_version(self._sums.get(client, ()), version, sums, base)

    def load_control(self, client: str, spec: StateSpec) -> ControlVariate:  # noqa: D102 - inherited
        return self._controls.get(client, ControlVariate())

    def save_control(self, client: str, kept: ControlVariate) -> None:  # noqa: D102 - inherited
        self._controls[client] = kept

    def load_own(self, client: str, spec: StateSpec) -> ControlVariate:  # noqa: D102 - inherited
        return self._own.get(client, ControlVariate())

    def save_own(self, client: str, kept: ControlVariate) -> None:  # noqa: D102 - inherited
        self._own[client] = kept

    def load_spent(self, client: str) -> tuple[Event, ...]:  # noqa: D102 - inherited
        return self._spent.get(client, ())

    def add_spent(self, client: str, event: Event) -> None:  # noqa: D102 - inherited
        self._spent[client] = (*self.load_spent(client), event)


class DirectoryStore(ClientStore):
    """One file per client and kind of what it keeps, in a folder.

    Args:
        folder: made when first written to.
        durable: survive a power cut, as a device must; a simulation need only survive a kill. A durable
            store is one process's own, and removes the temporary files that this process's death left.
        ledgers: folder of the privacy ledgers, where they must stay when ``folder`` goes.
    """

    def __init__(self, folder: Path, *, durable: bool = True, ledgers: Path | None = None) -> None:
        self._folder, self._durable, self._ledgers = folder, durable, ledgers or folder
        self.states = StatesInFolder(folder, durable=durable)
        if durable:
            clear_temporaries(folder)

    def _path(self, client: str, kind: str = "feedback") -> Path:
        return self._folder / f"{file_name(client)}.{kind}"

    def load(self, client: str, spec: StateSpec) -> FeedbackState:  # noqa: D102 - inherited
        found = self._read(client, lambda file: read_state(file, spec))
        return FeedbackState() if found is None else found

    def pending_round(self, client: str, spec: StateSpec) -> int | None:
        """As in :class:`ClientStore`: a device reads all, to find damage before it trains."""
        if self._durable:
            return super().pending_round(client, spec)
        return self._read(client, lambda file: pending_round(file, spec))

    def _read(self, client: str, read: Callable[[Readable], T], kind: str = "feedback") -> T | None:
        """What ``read`` returns for the client's file; None without one."""
        path = self._path(client, kind)
        try:
            with path.open("rb") as file:
                return read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"reading {path}",
                expected=f"the {kind} of client {client}",
                got=error.strerror or str(error),
                hint="Fix the rights or the disk; without the file, what this client held back is lost.",
            ) from error

    def save(self, client: str, state: FeedbackState) -> None:  # noqa: D102 - inherited
        write_atomically(self._path(client), *to_pieces(state), durable=self._durable)

    def load_control(self, client: str, spec: StateSpec) -> ControlVariate:  # noqa: D102 - inherited
        found = self._read(client, lambda file: from_bytes(file.read(), spec), "control")
        return ControlVariate() if found is None else found

    def save_control(self, client: str, kept: ControlVariate) -> None:  # noqa: D102 - inherited
        write_atomically(self._path(client, "control"), *to_bytes(kept), durable=self._durable)

    def load_own(self, client: str, spec: StateSpec) -> ControlVariate:  # noqa: D102 - inherited
        found = self._read(client, lambda file: from_bytes(file.read(), spec, "own part"), "own")
        return ControlVariate() if found is None else found

    def save_own(self, client: str, kept: ControlVariate) -> None:  # noqa: D102 - inherited
        write_atomically(self._path(client, "own"), *to_bytes(kept), durable=self._durable)

    def load_spent(self, client: str) -> tuple[Event, ...]:  # noqa: D102 - inherited
        return self._ledger(client).events

    def add_spent(self, client: str, event: Event) -> None:  # noqa: D102 - inherited
        make_folder(self._ledgers, durable=self._durable)
        self._ledger(client).append(event)

    def _ledger(self, client: str) -> Ledger:
        return Ledger(self._ledgers / f"{file_name(client)}.{LEDGER}")

    def load_sums(self, client: str) -> Mapping[int, Integers]:  # noqa: D102 - inherited
        return dict(self._versions(client))

    def save_sums(self, client: str, version: int, sums: Integers, base: int = 0) -> None:  # noqa: D102 - inherited
        kept = self._versions(client)
        after = with_version(kept, version, sums, base)
        if not same(after, kept):  # a task that comes again writes nothing
            write_atomically(self._path(client, "sums"), sums_to_bytes(after), durable=self._durable)

    def _versions(self, client: str) -> Versions:
        try:
            return sums_from_bytes(self._path(client, "sums").read_bytes())
        except OSError:  # as if there were none; a disk that is broken shows when it is written to
            return ()


class SharedStore(ClientStore):
    """What all clients of a simulation keep, in one file of their folder. It survives a kill, no power cut.

    An earlier version kept a file per client and kind: what such files hold is read until it is replaced.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._records = RecordFile(folder / STORE_FILE)
        self.states = SharedStates(self._records)
        self._earlier = DirectoryStore(folder, durable=False) if _has_files(folder) else MemoryStore()

    def load(self, client: str, spec: StateSpec) -> FeedbackState:  # noqa: D102 - inherited
        found = self._read(client, "feedback", lambda record: read_state(record, spec))
        return self._earlier.load(client, spec) if found is None else found[0]

    def pending_round(self, client: str, spec: StateSpec) -> int | None:
        """As in :class:`ClientStore`, from the head of what is kept."""
        found = self._read(client, "feedback", lambda record: pending_round(record, spec))
        return self._earlier.pending_round(client, spec) if found is None else found[0]

    def save(self, client: str, state: FeedbackState) -> None:  # noqa: D102 - inherited
        self._records.put(client, "feedback", to_pieces(state))

    def load_control(self, client: str, spec: StateSpec) -> ControlVariate:  # noqa: D102 - inherited
        found = self._read(client, "control", lambda record: from_bytes(record.read(), spec))
        return self._earlier.load_control(client, spec) if found is None else found[0]

    def save_control(self, client: str, kept: ControlVariate) -> None:  # noqa: D102 - inherited
        self._records.put(client, "control", to_bytes(kept))

    def load_own(self, client: str, spec: StateSpec) -> ControlVariate:  # noqa: D102 - inherited
        found = self._read(client, "own", lambda record: from_bytes(record.read(), spec, "own part"))
        return self._earlier.load_own(client, spec) if found is None else found[0]

    def save_own(self, client: str, kept: ControlVariate) -> None:  # noqa: D102 - inherited
        self._records.put(client, "own", to_bytes(kept))

    def load_spent(self, client: str) -> tuple[Event, ...]:  # noqa: D102 - inherited
        lines = self._read(client, LEDGER, lambda record: record.read().splitlines())
        where = f"{self._records.path}: the privacy ledger of client {client}"
        return () if lines is None else tuple(from_json(line, where) for line in lines[0])

    def add_spent(self, client: str, event: Event) -> None:  # noqa: D102 - inherited
        lines = [to_json(known) for known in (*self.load_spent(client), event)]
        self._records.put(client, LEDGER, [b"\n".join(lines)])

    def load_sums(self, client: str) -> Mapping[int, Integers]:  # noqa: D102 - inherited
        return dict(self._versions(client))

    def save_sums(self, client: str, version: int, sums: Integers, base: int = 0) -> None:  # noqa: D102 - inherited
        kept = self._versions(client)
        after = with_version(kept, version, sums, base)
        if not same(after, kept):  # a task that comes again writes nothing
            self._records.put(client, "sums", [sums_to_bytes(after)])

    def _versions(self, client: str) -> Versions:
        try:
            found = self._read(client, "sums", lambda record: sums_from_bytes(record.read()))
        except StorageError:  # as if there were none; a disk that is broken shows when it is written to
            return ()
        return tuple(self._earlier.load_sums(client).items()) if found is None else found[0]

    def _read(self, client: str, kind: str, read: Callable[[Readable], T]) -> tuple[T] | None:
        """What ``read`` returns for the client's record; None without one."""
        with self._records.reading(client, kind) as record:
            if record is None:
                return None
            try:
                return (read(record),)
            except StorageError as error:
                hint = "Restore the file from a backup, or start a new run."
                who = f"{self._records.path}: client {client}, {error.who}"
                raise StorageError(who, expected=error.expected, got=error.got, hint=hint) from None


def _has_files(folder: Path) -> bool:
    """Whether an earlier version has left clients' files in ``folder``."""
    return folder.is_dir() and any(path.suffix in _FILES for path in folder.iterdir())
