"""Messages as Flower's objects: :func:`seal` cuts one into pieces, :func:`open_objects` puts it together.

Flower sends a message as a tree of objects, each named by the SHA-256 of its bytes: Message, RecordDict,
ArrayRecord, Array, and the chunks of an array as leaves. What comes from the other side is hostile: the
shape of a tree is checked before anything of it is kept, and the length of what it unfolds to before it
is unfolded (an Array names its chunks by index, so ten kilobytes could name one chunk a million times).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import InflatableObject, iterate_object_tree

from headwater.errors import DecodeError
from headwater.flower.padding import Padding
from headwater.flower.records import RECORD, padding_of

CHUNK_BYTES = 2**20
"""Bytes of an array in one object: what one request carries, and what a broken one costs."""
WRAPPING_BYTES = 2**16
"""More than the objects around the chunks of a small message take."""

_HEAD_BYTES = 2**19
"""Of an object: 65 bytes for each chunk of an array, so arrays end at 8 GiB."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def wrapped(data_bytes: int) -> int:
    """The most that Flower's objects for an array of ``data_bytes`` take; an index line per chunk is 70 B."""
    return data_bytes + data_bytes // 1024 + WRAPPING_BYTES


def most_objects(data_bytes: int) -> int:
    """The most objects for an array of ``data_bytes`` whose chunks are full."""
    return 5 + data_bytes // CHUNK_BYTES


def seal(content: RecordDict, shared: dict[int, Array]) -> RecordDict:
    """The same content with its arrays cut into chunks of :data:`CHUNK_BYTES`.

    Flower's own size of a chunk (5 MiB) is a constant of its modules; cutting here changes nothing for
    the rest of the process.

    Args:
        content: as made by :func:`headwater.flower.pack`.
        shared: arrays cut before, by ``id`` of their data; filled. The state of a round is so cut and
            hashed once for all clients. It keeps the data alive, hence the ids true.
    """
    sealed = RecordDict()
    for name, record in content.array_records.items():
        sealed[name] = pieces = ArrayRecord()
        for part, array in record.items():  # set one by one: the constructor would copy the arrays
            pieces[part] = _cut(array, shared)
    return sealed


def _cut(array: Array, shared: dict[int, Array]) -> Array:
    known = shared.get(id(array.data))
    if known is not None and (known.dtype, known.shape, known.stype) == (
        array.dtype,
        array.shape,
        array.stype,
    ):
        return known
    copy = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data)
    view = memoryview(array.data)
    chunks = [ArrayChunk(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES)]
    copy.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]  # Flower's own cache
    shared[id(array.data)] = copy
    return copy


def reply_objects(tree: ObjectTree, *, most: int) -> list[str]:
    """The object ids of a reply: one array in one record.

    Raises:
        DecodeError: another shape, an id that is none, or more than ``most`` objects.
    """
    ids, node = [tree.object_id], tree
    for _ in range(3):  # Message > RecordDict > ArrayRecord > Array
        if len(node.children) != 1:
            raise DecodeError("object tree", expected="one array in one record", got="another shape")
        node = node.children[0]
        ids.append(node.object_id)
    if len(ids) + len(node.children) > most:
        raise DecodeError(
            "object tree", expected=f"at most {most} objects", got=f"{len(ids) + len(node.children)}"
        )
    if any(chunk.children for chunk in node.children):
        raise DecodeError("object tree", expected="chunks as leaves", got="chunks with children")
    ids.extend(chunk.object_id for chunk in node.children)
    if len(set(ids)) != len(ids) or not all(map(_SHA256.fullmatch, ids)):
        raise DecodeError("object tree", expected="distinct SHA-256 as ids", got="others")
    return ids


def tree_objects(tree: ObjectTree, *, most: int) -> list[str]:
    """The distinct object ids of any tree, children first.

    Raises:
        DecodeError: an id that is none, or more than ``most`` objects.
    """
    ids: dict[str, None] = {}
    for node in iterate_object_tree(tree):  # protobuf parses at most 100 levels
        ids[node.object_id] = None
        if len(ids) > most or _SHA256.fullmatch(node.object_id) is None:
            raise DecodeError("object tree", expected=f"at most {most} SHA-256 ids", got="more, or others")
    return list(ids)


class Parts(dict[str, bytes]):
    """Bytes by name.

    Attributes:
        padding: how they were padded.
    """

    padding: Padding = "none"


def open_objects(root: str, contents: Mapping[str, bytes], *, max_bytes: int) -> Parts:
    """The parts (see :func:`headwater.flower.pack`) of the message whose objects are ``contents``.

    Flower's own ``inflate`` would do the same with three more copies and no bound.

    Args:
        root: id of the message object.
        contents: objects by id; that ids are hashes has been checked.
        max_bytes: of all arrays together.

    Raises:
        DecodeError: the objects are not one record of arrays within ``max_bytes``.
    """
    try:
        (content,), _ = _read(contents[root], Message)
        (record,), names = _read(contents[content], RecordDict)
        if json.loads(bytes(names)) != {RECORD: record}:
            raise DecodeError("message", expected=f"record {RECORD!r}", got="another content")
        _, arrays = _read(contents[record], ArrayRecord)
        parts, left = Parts(), max_bytes
        for name, array in json.loads(bytes(arrays)).items():
            data, parts.padding = _array(contents[array], contents, left)
            parts[str(name)] = data
            left -= len(data)
        return parts
    except DecodeError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise DecodeError("message", expected="Flower's objects", got=got) from error


def _array(content: bytes, contents: Mapping[str, bytes], max_bytes: int) -> tuple[bytes, Padding]:
    """The data of an Array, and how it was padded; its length is known before anything is joined."""
    children, body = _read(content, Array)
    chunks = [_read(contents[child], ArrayChunk)[1] for child in children]
    about = json.loads(bytes(body))
    order, padding = about["arraychunk_ids"], padding_of(about["stype"])
    size = sum(len(chunks[index]) for index in order)
    if size > max_bytes:
        raise DecodeError("message", expected=f"at most {max_bytes} bytes", got=f"{size}")
    data = b"".join(chunks[index] for index in order)
    if padding == "none":
        return data, padding
    (end,) = about["shape"]
    if type(end) is not int or not 0 <= end <= size:
        raise DecodeError("message", expected=f"an end within its {size} bytes", got=ascii(end)[:32])
    return data[:end], padding


def _read(content: bytes, kind: type[InflatableObject]) -> tuple[list[str], memoryview]:
    """Children and body of an object: its head is ``<kind> <child,child,…> <bytes of body>``."""
    head, divider, _ = content[:_HEAD_BYTES].partition(HEAD_BODY_DIVIDER)
    name, children, size = head.decode("ascii").split(HEAD_VALUE_DIVIDER)
    body = memoryview(content)[len(head) + len(divider) :]
    if not divider or name != kind.__qualname__ or int(size) != len(body):
        raise DecodeError("message", expected=f"an object of kind {kind.__qualname__}", got=ascii(name[:32]))
    return children.split(",") if children else [], body
