"""A device that speaks Flower's protobufs with the handlers behind the server's end."""

from __future__ import annotations

from flwr.app import Message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.servicer.fleet import fleet_handlers

from headwater.flower import fleet_server as link_module
from headwater.flower import pack
from headwater.flower.fleet_client import sealed_reply
from headwater.flower.message_objects import CHUNK_BYTES
from headwater.security.signing import Identity

MAX = 3 * CHUNK_BYTES


def blocks(chunks, first=0):
    """Data of so many different chunks."""
    return b"".join(bytes([first + i]) * CHUNK_BYTES for i in range(chunks))


class Device:
    """Speaks Flower's protobufs with the handlers behind the link's routes, checks included."""

    def __init__(self, link, name):
        self.link, self.link_state = link, link._link_state
        self.node = link.register(name, Identity.create(name).public.node_key)

    def _checked(self, handler, request, **more):
        link_module._check(self.link_state, request)
        return handler(request=request, state=self.link_state, **more)

    def fetch(self):
        """The next request as (metadata, its objects), not confirmed."""
        answer = self._checked(
            fleet_handlers.pull_messages,
            PullMessagesRequest(node=Node(node_id=self.node)),
            store=self.link_state.object_store,
        )
        if not answer.messages_list:
            return None
        objects = {
            node.object_id: self.pull(node.object_id)
            for node in iterate_object_tree(answer.message_object_trees[0])
        }
        return message_from_proto(answer.messages_list[0]).metadata, objects

    def pull(self, object_id):
        request = PullObjectRequest(
            node=Node(node_id=self.node), run_id=self.link_state.run_id, object_id=object_id
        )
        return self._checked(fleet_handlers.pull_object, request).object_content

    def confirm(self, metadata):
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=self.node), run_id=metadata.run_id, message_object_id=metadata.message_id
        )
        link_module._check(self.link_state, request)
        self.link_state.confirm(metadata.message_id)

    def announce(self, asked, data, change=lambda request: None):
        request, objects = sealed_reply(asked, data)
        request.node.node_id = self.node
        change(request)
        answer = self._checked(fleet_handlers.push_messages, request)
        return answer.session_id, {i: objects[i].deflate() for i in answer.objects_to_push if i in objects}

    def upload(self, session, object_id, content):
        request = PushObjectRequest(
            node=Node(node_id=self.node),
            run_id=self.link_state.run_id,
            object_id=object_id,
            object_content=content,
            session_id=session,
        )
        return self._checked(fleet_handlers.push_object, request).stored

    def upload_all(self, session, objects):
        for object_id, content in objects.items():
            assert self.upload(session, object_id, content)

    def answer(self, asked, data):
        self.upload_all(*self.announce(asked, data))


def send(link, node, kind="train", **parts):
    (message_id,) = link.grid.push_messages([Message(pack(**parts), node, kind)])
    return message_id


def pull(link, *ids):
    return list(link.grid.pull_messages(list(ids)))


def sizes(thing, seen=None):
    """How many things are held by ``thing``, through containers and our and Flower's objects."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict):
        return len(thing) + sum(sizes(v, seen) for v in thing.values())
    if isinstance(thing, list | set | tuple | frozenset):
        return len(thing) + sum(sizes(v, seen) for v in thing)
    if type(thing).__module__.startswith(("headwater", "flwr")) and hasattr(thing, "__dict__"):
        return sum(sizes(v, seen) for v in vars(thing).values())
    return 0
