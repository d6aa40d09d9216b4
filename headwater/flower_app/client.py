"""client_app: the ClientApp of a federation file, on anybody's SuperNode."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from headwater.errors import HeadwaterError
from headwater.flower_app.settings import NodeSettings, RunSettings

if TYPE_CHECKING:  # torch is imported when the first message comes
    from headwater.client.execution.runtime import ClientRuntime

_opened: dict[tuple[object, ...], tuple[str, ClientRuntime]] = {}
"""The node that this process was opened for: an actor of Flower's simulation answers many messages."""


def client_app(file: Path) -> ClientApp:
    """A ClientApp whose node is one client of the federation in ``file``.

    It answers the messages of :func:`.server_app`'s ServerApp. What a client cannot do is its failure, and
    leaves the node as a code; the text, which may quote rows and paths, is printed, for its own log.

    Args:
        file: the federation file, of the app.
    """

    def handle(message: Message, context: Context) -> Message:
        from headwater.flower import pack, unpack

        envelope, state = unpack(message.content, "envelope", "state")
        return Message(pack(reply=_reply(file, envelope, state, context)), reply_to=message)

    app = ClientApp()
    for register in (app.train, app.evaluate, app.query):
        register()(handle)
    return app


def _reply(file: Path, envelope: bytes, state: bytes, context: Context) -> bytes:
    """The encoded reply to one encoded request."""
    from headwater.client.execution.answer import answer
    from headwater.flower_app.store import client_store
    from headwater.proto.wire import decode_reply, decode_request, encode_reply
    from headwater.protocol.failures import failure_of
    from headwater.protocol.messages import ClientFailure, ProfileRequest

    request = decode_request(envelope, state)
    number = 0 if isinstance(request, ProfileRequest) else request.round
    client = ""
    try:
        node = NodeSettings.of(context.node_config)
        client = node.client or f"partition {node.partition}"
        client, runtime = _once(file, RunSettings.of(context.run_config), node)
        runtime.data.client(client)  # what is wrong with its rows shows here and nowhere later
        with client_store(context, node.store) as store:
            reply = answer(envelope, state, client, store, runtime)
        found = decode_reply(reply, max_bytes=len(reply))
        if not isinstance(found, ClientFailure):
            return reply
        failure, text = found.failure, found.reason
    except Exception as error:  # libraries raise what they like; the server must get an answer
        failure = failure_of(error)
        text = str(error) if isinstance(error, HeadwaterError) else traceback.format_exc()
    print(f"headwater: {client or 'this node'}: {text}", flush=True)
    return encode_reply(ClientFailure.coded(client, number, failure, request.run))


def _once(file: Path, run: RunSettings, node: NodeSettings) -> tuple[str, ClientRuntime]:
    """The client's name, its model and its data; read once in a process."""
    key = (file, run, node)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_node(file, run, node)
    return _opened[key]


def open_node(file: Path, run: RunSettings, node: NodeSettings) -> tuple[str, ClientRuntime]:
    """A node's client, with model and data.

    Args:
        file: the federation file.
        run: what the run says.
        node: what its owner says.

    Raises:
        HeadwaterError: what is wrong with settings, model or data.
    """
    from headwater.client.execution.runtime import ClientRuntime
    from headwater.config.model import VectorModel
    from headwater.data.federated import FederatedData
    from headwater.seeds.keys import Key
    from headwater.training.context import TrainingContext

    loaded = run.load(file, node.folder)
    name, settings = loaded.run_id(), loaded.settings
    if node.model and not isinstance(settings.model, VectorModel):
        here = {"path": str(Path(node.model).expanduser().resolve()), "revision": None}
        loaded = replace(
            loaded,
            settings=settings.model_copy(update={"model": settings.model.model_copy(update=here)}),
        )
    context = TrainingContext.open(loaded)
    root = Key.root(settings.federation.seed)
    own = settings.own_part
    if not node.data:
        runtime = replace(ClientRuntime.open(loaded, context, check=False), run=name, simulated=False)
        return node.name(runtime.data.clients), runtime
    data = FederatedData.own(loaded, Path(node.data).expanduser(), node.client, context.tokenizer, root)
    return node.client, ClientRuntime(name, context, data, root, own_part=own)
