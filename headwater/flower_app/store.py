"""What a client keeps between rounds, in a Flower app: :func:`client_store`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import ArrayRecord, Context

from headwater.client.execution.store import ClientStore, DirectoryStore
from headwater.errors import StorageError
from headwater.flower import as_array

KEPT = "headwater.kept"
"""The record of a node's context."""


@contextmanager
def client_store(context: Context, folder: str) -> Iterator[ClientStore]:
    """The client's store, while it answers one message.

    Flower starts a new process for each message, and carries ``context.state`` from one to the next. What is
    kept are files: they are laid into a temporary folder, and taken back when the answer is made.

    Args:
        context: of the node.
        folder: of the node's owner, where the files stay instead; they outlive the SuperNode. Empty for none.

    Raises:
        StorageError: the folder cannot be written.
    """
    if folder:
        yield DirectoryStore(Path(folder).expanduser() / f"{context.run_id}")
        return
    with TemporaryDirectory(prefix="headwater-") as name:
        here = Path(name)
        kept = context.state.get(KEPT, ArrayRecord())
        if not isinstance(kept, ArrayRecord):
            raise StorageError(f"record {KEPT!r} of the node's context", expected="arrays", got="others")
        for file, array in kept.items():
            (here / Path(file).name).write_bytes(array.data)
        yield DirectoryStore(here, durable=False)
        found = ArrayRecord()
        for path in sorted(here.iterdir()):
            found[path.name] = as_array(path.read_bytes())
        context.state[KEPT] = found
