"""Headwater's client path as Flower's ClientApp: :func:`client_app`."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from headwater.client.answer import answer
from headwater.client.runtime import ClientRuntime
from headwater.client.store import ClientStore
from headwater.flower import pack, unpack


def client_app(open_node: Callable[[Context], tuple[str, ClientStore, ClientRuntime]]) -> ClientApp:
    """A ClientApp whose node is opened by ``open_node``: its client's name, store and runtime."""

    def handle(message: Message, context: Context) -> Message:
        client, store, runtime = open_node(context)
        envelope, state = unpack(message.content, "envelope", "state")
        return Message(pack(reply=answer(envelope, state, client, store, runtime)), reply_to=message)

    app = ClientApp()
    app.train()(handle)
    app.evaluate()(handle)
    app.query()(handle)
    return app
