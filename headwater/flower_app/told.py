"""What a ServerApp prints while its federation runs; ``flwr log`` shows it."""

from __future__ import annotations

from headwater.server.events import ClientFailed, Event, Notice, RoundEnded, RunStarted
from headwater.text import human_bytes, number, plain


def tell(event: Event) -> None:
    """Print a line for each round, failure and notice."""
    match event:
        case RunStarted(rounds=rounds, done=done, clients=clients):
            text = f"{clients} clients; round {done} of {rounds} is done"
        case RoundEnded(round=done, record=record, metric=metric, value=value):
            text = f"round {done}: {metric} {number(value)}, {human_bytes(record.bytes.up or 0)} up"
        case ClientFailed(round=done, client=client, reason=reason):
            text = f"round {done}: {plain(client, 80)} failed: {plain(reason, 500)}"
        case Notice(text=text):
            text = plain(text, 500)
        case _:
            return
    print(text, flush=True)
