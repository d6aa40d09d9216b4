"""broadcast: the global adapter moves by what travels, with error feedback on the server. No I/O.

The strategy has moved the adapter from b to its target x. Where ``codec.down`` is lossy, clients cannot have
x; the global adapter is what they can have::

    d = decode(C(x + e − b))    what travels
    b ← b + d                   fp32, value by value: the same bits at the server and at every client
    e ← decay·((x + e) − b)     what was kept back goes with the next one

With b + e for the model and b for its shift this is EF21-P (arXiv 2209.15218) too: the server knows both, so
that ``error_feedback`` "ef14" and "ef21" are one thing on the way down.

Nobody is sent the last adapter of a run whose clients do not evaluate: it is b + e, all of it.

Source: the downstream compression of STC (arXiv 1903.02891, algorithm 2) and DoubleSqueeze (arXiv
1905.05957), both without their worker's half, which is :mod:`headwater.compression.feedback`.
"""

from __future__ import annotations

from dataclasses import replace

from headwater.compression.table import codec_for
from headwater.config.codec import Codec
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.strategies.strategy import ServerState


def broadcast(
    before: ServerState, after: ServerState, settings: Codec, *, key: Key, travels: bool = True
) -> tuple[ServerState, Payload | None]:
    """The state after a round as every client can have it, and what makes it of the one before.

    Args:
        before: the round; its adapter is what the clients started from.
        after: the round, as the strategy left it.
        settings: ``[codec.down]``.
        key: the federation's root key.
        travels: whether a client will be sent this state.

    Returns:
        ``after`` and None where the whole adapter travels, coefficients of seeds do, or nothing does: nothing
        is lost then, and what had been kept back is in it.

    Raises:
        TrainingError: values that are not finite.
    """
    if after.seeded_state is not None:
        return after, None
    target = after.state if after.residual is None else after.state + after.residual
    if settings.whole or not travels:
        return replace(after, state=target, residual=None), None
    change = target - before.state
    payload, values = codec_for(settings).round_trip(change, key=key.child("down", after.round))
    state = before.state + values
    if not settings.error_feedback:
        return replace(after, state=state, residual=None), payload
    decay, _ = settings.fading()
    held_back = target - state
    return replace(after, state=state, residual=held_back if decay == 1 else held_back * decay), payload
