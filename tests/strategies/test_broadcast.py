"""The server's error feedback: what clients hold is what travels, and nothing of the target is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.table import codec_by_id
from headwater.config.codec import CompeftCodec, DenseCodec, RandkCodec, TopkCodec
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.broadcast import broadcast
from headwater.strategies.strategy import ServerState

SPEC = StateSpec.of([TensorSpec("a", (40,), "vector"), TensorSpec("b", (8, 5), "head")])
KEY = Key.root(4)
SPARSE = CompeftCodec(kind="compeft", density=0.1)


def moved(server: ServerState, seed: int, scale: float = 0.1) -> ServerState:
    """The server after a round's update."""
    draw = torch.randn(SPEC.numel, generator=torch.Generator().manual_seed(seed)) * scale
    return replace(server, round=server.round + 1, state=server.state + AdapterState.from_vector(SPEC, draw))


def test_a_dense_way_down_changes_nothing():
    before = ServerState(0, AdapterState.zeros(SPEC))
    after = moved(before, 1)
    assert broadcast(before, after, DenseCodec(kind="dense"), key=KEY) == (after, None)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=12), st.floats(0.02, 1.0))
def test_what_travels_and_what_is_kept_back_are_all_of_it(seeds, density):
    """Σ updates = (what clients hold) + (what is kept back), up to fp32 rounding."""
    codec = CompeftCodec(kind="compeft", density=density)
    server, exact = ServerState(0, AdapterState.zeros(SPEC)), np.zeros(SPEC.numel)
    for seed in seeds:
        target = moved(server, seed)
        exact += target.state.vector().double().numpy() - server.state.vector().double().numpy()
        following, payload = broadcast(server, target, codec, key=KEY)
        assert payload is not None
        held = server.state + codec_by_id(payload.codec).decode(payload, SPEC)
        assert held.sha256() == following.state.sha256()  # the client's bits
        server = following
    both = (server.state.vector().double() + server.residual.vector().double()).numpy()
    np.testing.assert_allclose(both, exact, atol=2e-6)


def test_an_adapter_that_is_sent_to_nobody_has_all_that_was_kept_back():
    before = ServerState(0, AdapterState.zeros(SPEC))
    one, _ = broadcast(before, moved(before, 1), SPARSE, key=KEY)
    last, payload = broadcast(one, moved(one, 2), SPARSE, key=KEY, travels=False)
    assert payload is None
    assert last.residual is None
    assert last.state == moved(one, 2).state + one.residual


def test_what_is_kept_back_fades():
    before = ServerState(0, AdapterState.zeros(SPEC))
    whole, fading = (TopkCodec(kind="topk", density=0.1, decay=decay) for decay in (1.0, 0.5))
    one, _ = broadcast(before, moved(before, 1), whole, key=KEY)
    two, _ = broadcast(before, moved(before, 1), fading, key=KEY)
    assert two.state == one.state
    assert two.residual == one.residual * 0.5


def test_each_round_draws_anew_what_travels():
    codec, server, places = (
        RandkCodec(kind="randk", density=0.1),
        ServerState(0, AdapterState.zeros(SPEC)),
        [],
    )
    for _ in range(2):
        following, _ = broadcast(server, moved(server, 1), codec, key=KEY)
        places.append((following.state - server.state).vector().nonzero().flatten().tolist())
        server = following
    assert places[0] != places[1]


def test_without_feedback_what_is_cut_off_is_gone():
    silent = SPARSE.model_copy(update={"error_feedback": False})
    server, _ = broadcast(
        ServerState(0, AdapterState.zeros(SPEC)),
        moved(ServerState(0, AdapterState.zeros(SPEC)), 1),
        silent,
        key=KEY,
    )
    assert server.residual is None


def test_a_way_down_that_becomes_dense_brings_what_was_kept_back():
    before = ServerState(0, AdapterState.zeros(SPEC))
    one, _ = broadcast(before, moved(before, 1), SPARSE, key=KEY)
    assert one.residual is not None
    target = moved(one, 2)
    two, payload = broadcast(one, target, DenseCodec(kind="dense"), key=KEY)
    assert (payload, two.residual) == (None, None)
    assert two.state == target.state + one.residual
