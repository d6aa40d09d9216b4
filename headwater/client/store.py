"""ClientStore: where a client keeps its error feedback between rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from headwater.compression.feedback import FeedbackState, from_bytes, to_bytes
from headwater.errors import StorageError
from headwater.files import clear_temporaries, file_name, write_atomically
from headwater.state import StateSpec


class ClientStore(ABC):
    """Feedback states by client name."""

    @abstractmethod
    def load(self, client: str, spec: StateSpec) -> FeedbackState:
        """The state last saved; the empty one for a new client.

        Raises:
            StorageError: what is stored is damaged or cannot be read.
            SpecMismatch: it is of another spec.
        """

    @abstractmethod
    def save(self, client: str, state: FeedbackState) -> None:
        """Replace the client's state: whole or not at all.

        Raises:
            StorageError: it could not be written; the old one is intact.
        """


class MemoryStore(ClientStore):
    """Keeps states as long as the process lives."""

    def __init__(self) -> None:
        self._states: dict[str, FeedbackState] = {}

    def load(self, client: str, spec: StateSpec) -> FeedbackState:  # noqa: D102 - inherited
        return self._states.get(client, FeedbackState())

    def save(self, client: str, state: FeedbackState) -> None:  # noqa: D102 - inherited
        self._states[client] = state


class DirectoryStore(ClientStore):
    """One file per client in a folder.

    Args:
        folder: made when first written to.
        durable: survive a power cut, as a device must; a simulation need only survive a kill. A durable
            store is one process's own, and removes the temporary files that this process's death left.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable
        if durable:
            clear_temporaries(folder)

    def _path(self, client: str) -> Path:
        return self._folder / f"{file_name(client)}.feedback"

    def load(self, client: str, spec: StateSpec) -> FeedbackState:  # noqa: D102 - inherited
        path = self._path(client)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return FeedbackState()
        except OSError as error:
            raise StorageError(
                f"reading {path}",
                expected=f"the error feedback of client {client}",
                got=error.strerror or str(error),
                hint="Fix the rights or the disk; without the file, what this client held back is lost.",
            ) from error
        return from_bytes(data, spec)

    def save(self, client: str, state: FeedbackState) -> None:  # noqa: D102 - inherited
        write_atomically(self._path(client), to_bytes(state), durable=self._durable)
