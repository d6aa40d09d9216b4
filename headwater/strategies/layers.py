"""Which tensors a client trains: the last layers, SPRY's share of all of them, one factor of each pair."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.config.assignment import Method
from headwater.merging.coverage import last_layers, layer_of, layers_of
from headwater.seeds.keys import Key
from headwater.state import StateSpec


def trained_tensors(
    spec: StateSpec, methods: Mapping[str, Method], *, key: Key
) -> dict[str, tuple[str, ...] | None]:
    """The tensors that each client trains in a round; None for all.

    SPRY (arXiv 2405.15551, section 3.1) splits the layers over the round's clients. Clients in random
    order take the next ``layers_per_client`` layers of a random order, over and over: no layer has two
    clients more than another, and none is left out if there are clients enough. Tensors of no layer, such
    as the head, are everybody's.

    Args:
        spec: of the adapter.
        methods: of the round's clients, by name.
        key: of the round.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    pools: dict[int | None, list[str]] = {}
    for client, method in sorted(methods.items()):
        if method.training.splits_layers:
            pools.setdefault(method.last_layers, []).append(client)
        else:
            found[client] = None if method.last_layers is None else last_layers(spec, method.last_layers)
    for last, clients in pools.items():
        names = [t.name for t in spec] if last is None else list(last_layers(spec, last))
        layers = layers_of(names)
        order = key.child("layers", last or 0).numpy().permutation(layers).tolist()
        at = 0
        for client in key.child("spry", last or 0).numpy().permutation(clients).tolist():
            count = min(getattr(methods[client].training, "layers_per_client", 1), len(layers))
            mine = {order[(at + i) % len(order)] for i in range(count)}
            at += count
            found[client] = tuple(n for n in names if (layer := layer_of(n)) is None or layer in mine)
    everything = len(spec)
    return {c: None if t is None or len(t) == everything else t for c, t in found.items()}


def one_factor(spec: StateSpec, tensors: tuple[str, ...] | None, number: int) -> tuple[str, ...]:
    """Of these tensors (None for all), those that move in a round of RoLoRA (arXiv 2409.02346).

    In odd rounds A stands still, in even ones B: the mean of the other factor is then exactly the mean of the
    products, and both are trained in the end. B is first, for it starts as 0.
    """
    still = "lora_a" if number % 2 else "lora_b"
    return tuple(t.name for t in spec if t.role != still and (tensors is None or t.name in tensors))
