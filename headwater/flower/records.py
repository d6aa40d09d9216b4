"""Our bytes as the content of a Flower message: :func:`pack` and :func:`unpack`.

Flower carries bytes and looks after nodes; it does no arithmetic here. Everything that is not in
Flower's documented interface is touched in this package only; ``tests/flower_layer/test_flower.py`` names it.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from headwater.errors import DecodeError

RECORD = "headwater"
STYPE = "headwater.v1"


def pack(**parts: bytes | Array) -> RecordDict:
    """Named bytes as the content of a Flower message.

    They travel as arrays, which Flower cuts into chunks and stores once where they are equal: the
    global state of a round goes up to the SuperLink once, whatever the number of clients. What goes to many
    can be given as one :func:`as_array`.
    """
    record = ArrayRecord()
    for name, data in parts.items():  # given to the constructor, each array would be made twice
        record[name] = data if isinstance(data, Array) else as_array(data)
    return RecordDict({RECORD: record})


def as_array(data: bytes) -> Array:
    """Bytes as Flower carries them; nobody may change it."""
    return Array("uint8", (len(data),), STYPE, data)


def unpack(content: RecordDict, *names: str) -> tuple[bytes, ...]:
    """The inverse of :func:`pack`.

    Raises:
        DecodeError: the content is not one of ours.
    """
    record = content.get(RECORD)
    if not isinstance(record, ArrayRecord) or set(record) != set(names):
        raise DecodeError("Flower message", expected=f"record {RECORD!r} with {names}", got="another content")
    return tuple(record[name].data for name in names)


def count_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message as it is handed to Flower."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def assume_task_identity(run_id: int, node_id: int) -> None:
    """Let this process make Flower messages without a Flower task around it (internal in 1.41)."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 1
