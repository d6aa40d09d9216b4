"""Headwater's client path as Flower's ClientApp: :func:`client_app`."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from headwater.client.execution.answer import answer
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.errors import InternalError, StorageError
from headwater.flower import as_array, pack, padding_in, unpack
from headwater.flower.faults import as_error


def client_app(open_node: Callable[[Context], tuple[str, ClientStore, ClientRuntime]]) -> ClientApp:
    """A ClientApp whose node is opened by ``open_node``: its client's name, store and runtime."""

    def handle(message: Message, context: Context) -> Message:
        client, store, runtime = open_node(context)
        envelope, state = unpack(message.content, "envelope", "state")
        try:
            reply = answer(envelope, state, client, store, runtime)
        except (StorageError, InternalError) as error:  # the run's end, not this client's failure
            return Message(as_error(error), reply_to=message)
        return Message(pack(reply=as_array(reply, padding_in(message.content))), reply_to=message)

    app = ClientApp()
    app.train()(handle)
    app.evaluate()(handle)
    app.query()(handle)
    return app
