"""What Headwater relies on in Flower, named: an upgrade that changes it fails here first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

import headwater
from headwater.errors import DecodeError
from headwater.flower import RECORD, assume_task_identity, count_bytes, pack, unpack


def test_pack_and_unpack():
    content = pack(envelope=b"abc", state=b"")
    assert unpack(content, "envelope", "state") == (b"abc", b"")
    assert count_bytes(content) == 3


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({RECORD: ConfigRecord({"envelope": b"abc"})}),
        RecordDict({RECORD: ArrayRecord({"other": Array("uint8", (1,), "x", b"a")})}),
    ],
)
def test_foreign_content_is_refused(content):
    with pytest.raises(DecodeError, match="Flower message"):
        unpack(content, "envelope", "state")


def test_messages_outside_a_flower_task():
    """Internal: TaskIdentity must be set, and a reply points to the message id that we set."""
    assume_task_identity(run_id=1, node_id=1)
    message = Message(pack(a=b"x"), 2, MessageType.TRAIN, group_id="1")
    message.metadata.__dict__["_message_id"] = "m0"
    reply = Message(pack(b=b"y"), reply_to=message)
    assert reply.metadata.reply_to_message_id == "m0"
    assert not reply.has_error()


def test_internals_are_imported_in_one_module_only():
    public = {"flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation"}
    root = Path(headwater.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", path.read_text(), re.MULTILINE):
            if module not in public:
                found.setdefault(path.relative_to(root).as_posix(), set()).add(module)
    assert found == {"flower.py": {"flwr.supercore.task_identity"}}
