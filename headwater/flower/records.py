"""Our bytes as the content of a Flower message: :func:`pack` and :func:`unpack`.

Flower carries bytes and looks after nodes; it does no arithmetic here. Everything that is not in
Flower's documented interface is touched in this package only; ``tests/flower_layer/test_flower.py`` names it.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from headwater.errors import DecodeError
from headwater.flower.padding import PADDINGS, Padding, filler

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


def as_array(data: bytes, padding: Padding = "none") -> Array:
    """Bytes as Flower carries them; nobody may change it.

    Padded, its ``stype`` says how, and its shape where the data end.
    """
    if padding == "none":
        return Array("uint8", (len(data),), STYPE, data)
    return Array("uint8", (len(data),), f"{STYPE}.{padding}", data + filler(data, padding))


def padding_of(stype: str) -> Padding:
    """How an array of this ``stype`` is padded."""
    return next((p for p in PADDINGS if stype == f"{STYPE}.{p}"), "none")


def padding_in(content: RecordDict) -> Padding:
    """How a message's arrays are padded; what answers it is padded so, too."""
    record = content.array_records.get(RECORD)
    return "none" if record is None else padding_of(next(iter(record.values())).stype)


def unpack(content: RecordDict, *names: str) -> tuple[bytes, ...]:
    """The inverse of :func:`pack`.

    Raises:
        DecodeError: the content is not one of ours.
    """
    record = content.get(RECORD)
    if not isinstance(record, ArrayRecord) or set(record) != set(names):
        raise DecodeError("Flower message", expected=f"record {RECORD!r} with {names}", got="another content")
    return tuple(_data(record[name]) for name in names)


def _data(array: Array) -> bytes:
    """Without padding, of which there is none in most: then it is no copy."""
    return array.data if padding_of(array.stype) == "none" else array.data[: array.shape[0]]


def count_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message as it is handed to Flower."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def assume_task_identity(run_id: int, node_id: int) -> None:
    """Let this process make Flower messages without a Flower task around it (internal in 1.41)."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 1
