"""ClientStore: where a client keeps its error feedback between rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import quote

from headwater.compression.feedback import FeedbackState, from_bytes, to_bytes
from headwater.files import write_atomically
from headwater.state import StateSpec


class ClientStore(ABC):
    """Feedback states by client name."""

    @abstractmethod
    def load(self, client: str, spec: StateSpec) -> FeedbackState:
        """The state last saved; the empty one for a new client.

        Raises:
            StorageError: what is stored is damaged or of another spec.
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
        durable: survive a power cut, as a device must; a simulation need only survive a kill.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable

    def _path(self, client: str) -> Path:
        return self._folder / f"{quote(client, safe='')}.feedback"

    def load(self, client: str, spec: StateSpec) -> FeedbackState:  # noqa: D102 - inherited
        path = self._path(client)
        return from_bytes(path.read_bytes(), spec) if path.exists() else FeedbackState()

    def save(self, client: str, state: FeedbackState) -> None:  # noqa: D102 - inherited
        write_atomically(self._path(client), to_bytes(state), durable=self._durable)
