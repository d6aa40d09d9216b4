"""Each client is sent what it lacks: all coefficients, what changed since its version, or the adapter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.compression.seed_state import MAX_SUMS, SEEDS, decode_sums
from headwater.compression.since import name_of
from headwater.compression.table import codec_by_id, codec_for
from headwater.config.codec import DenseCodec
from headwater.errors import UpdateRejected
from headwater.protocol.failures import FailureCode, coded
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.server.clients import downlink as module
from headwater.server.clients.downlink import KEPT_VERSIONS, Downlink
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.strategy import ServerState

SPEC = StateSpec.of([TensorSpec("v", (64,), "vector")])
DENSE = DenseCodec(kind="dense", dtype="bf16")
ORIGIN = AdapterState.from_vector(SPEC, torch.linspace(-1, 1, 64))
SPAN = SeededState(ORIGIN, Directions(b"k" * 16, "rademacher", 64), 40, np.zeros(512, np.int64))


def servers(count):
    """The server after rounds 0, 1, …: four seeds move in each."""
    seeded_state, rng = SPAN, np.random.default_rng(1)
    yield ServerState(0, ORIGIN, seeded_state=seeded_state)
    for number in range(1, count):
        change = np.zeros(512, np.int64)
        change[rng.choice(512, 4, replace=False)] = rng.integers(-(2**20), 2**20, 4)
        seeded_state = seeded_state.plus(0, change)
        yield ServerState(number, seeded_state.state(), seeded_state=seeded_state)


def test_a_client_can_make_its_base_of_what_it_held_when_it_was_last_accepted():
    down, all_sums = Downlink(Key.root(1)), {}
    for server in servers(14):
        version = server.round
        all_sums[version] = server.seeded_state.sums
        accepted = {"always": version, "some": version - 3, "old": 2, "first": 1}
        accepted = {client: r for client, r in accepted.items() if 0 < r <= version}
        out = down.open(server, DENSE, accepted)
        assert out.base == server.state
        sizes = {}
        for client in ("always", "some", "old", "first", "new"):
            payload, asked = out.payload(client), []
            held = accepted.get(client, 0) - 1

            def known(wanted, held=held, asked=asked):
                asked.append(wanted)
                return all_sums[held] if wanted == held else None

            sums = decode_sums(payload, known, 512)
            assert sums.tolist() == server.seeded_state.sums.tolist()
            sizes[client] = len(payload.body)
            since = held if held > 0 and version - held < KEPT_VERSIONS else None
            assert asked == ([since] if since else [])
        if version > 4:
            assert sizes["always"] < sizes["some"] < sizes["new"] == sizes["first"]


def test_versions_that_are_too_old_are_forgotten_and_a_new_process_knows_none():
    down = Downlink(Key.root(1))
    for server in servers(14):
        last, whole = server, down.open(server, DENSE, {})
    assert len(whole.known) == KEPT_VERSIONS - 1
    again = Downlink(Key.root(1)).open(last, DENSE, {"a": last.round})
    assert again.payload("a") == whole.payload("nobody")


def test_who_lost_its_coefficients_is_sent_all_until_it_is_accepted_again():
    down = Downlink(Key.root(1))
    history = list(servers(6))
    last = history.pop()
    for server in history:
        down.open(server, DENSE, {})
    accepted = {"a": 4, "b": 4}
    full = down.open(history[4], DENSE, {}).payload("a")
    short = down.open(history[4], DENSE, accepted).payload("a")
    assert len(short.body) < len(full.body)
    down.needs_full("a", UpdateRejected("a", got="needs all coefficients"), 4)  # words decide nothing
    down.needs_full("a", coded(UpdateRejected("a"), FailureCode.OUT_OF_MEMORY), 4)
    assert down.open(history[4], DENSE, accepted).payload("a") == short
    out = down.open(history[4], DENSE, accepted)
    down.needs_full("a", coded(UpdateRejected("a"), FailureCode.NEEDS_FULL_STATE, 3), 4)
    assert down.open(history[4], DENSE, accepted).payload("a") == full
    assert down.open(history[4], DENSE, accepted).payload("b") == short
    assert out.payload("a") == full  # in the same round too, when it is asked again
    out = down.open(last, DENSE, {"a": 5, "b": 5})
    assert out.payload("a") == out.payload("b") != out.payload("nobody")


@pytest.mark.parametrize("why", ["no span", "too many"])
def test_otherwise_the_adapter_goes_as_the_file_says(monkeypatch, why):
    monkeypatch.setattr(module, "MAX_SUMS", MAX_SUMS if why == "no span" else 511)
    server = ServerState(3, ORIGIN, seeded_state=None if why == "no span" else SPAN)
    out = Downlink(Key.root(1)).open(server, DENSE, {"a": 3})
    payload = out.payload("a")
    assert payload.codec == "dense-bf16.v1" != SEEDS
    assert out.base == codec_by_id(payload.codec).decode(payload, SPEC) != ORIGIN


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_state_that_is_shorter_than_any_increment_travels_whole(size):
    """Of one or two values even the name of a base is longer than the state, and no link was left to drop."""
    before = AdapterState.from_vector(StateSpec.of([TensorSpec("v", (size,), "vector")]), torch.ones(size))
    increment = codec_for(DenseCodec(kind="dense")).encode(before, key=Key.root(1))
    down = Downlink(Key.root(1))
    down.moved(before, before + before, increment)
    assert (down.record().path, down.record().links) == ((name_of((before + before).sha256()),), ())
