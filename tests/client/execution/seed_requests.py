"""A client of seeds' methods, and what a server asks of it."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.client.execution.runtime import ClientRuntime
from headwater.compression.dense import DenseCodec
from headwater.compression.seed_state import encode_sums
from headwater.config import load_federation
from headwater.config.codec import CompeftCodec as CompeftSettings
from headwater.config.training import KseedTraining
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import ClientPlan, TrainRequest
from headwater.seeds.coefficients import FINE_BITS, SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from tests.support.runs import tiny_federation

KSEED = KseedTraining(kind="kseed", seeds=64, max_steps=6, learning_rate=1e-2, batch_size=4)
SEEDS = SeedPlan(0, 64, "rademacher", 15, 6)
COMPEFT = CompeftSettings(kind="compeft", density=0.05)
PLAN = ClientPlan(KSEED, COMPEFT, seeds=SEEDS)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return ClientRuntime.open(load_federation(tiny_federation(tmp_path_factory.mktemp("fed"))))


@pytest.fixture(scope="module")
def seeded_state(runtime):
    """A server's: all zero."""
    origin = runtime.context.initial_state()
    directions = directions_of(SEEDS, runtime.root, origin.spec.numel)
    return SeededState(origin, directions, SEEDS.unit_bits + FINE_BITS, np.zeros(64, np.int64))


def fresh(runtime):
    """The same runtime after a restart: nothing in memory."""
    return ClientRuntime(runtime.run, runtime.context, runtime.data, runtime.root)


def moved(seeded_state, seed):
    """The span after a round in which ten seeds moved."""
    draw = np.random.default_rng(seed)
    change = np.zeros(64, np.int64)
    change[draw.choice(64, 10, replace=False)] = draw.integers(-(2**20), 2**20, 10)
    return seeded_state.plus(0, change)


def sent(seeded_state, since=None, version=0):
    sums = None if since is None else since.sums
    return encode_sums(
        seeded_state.sums,
        sums,
        version=version,
        distribution=seeded_state.directions.distribution,
        unit_bits=seeded_state.unit_bits,
    )


def request(runtime, state, payload, client="ann", round=1, plan=PLAN, accepted=0):
    return TrainRequest(
        run=runtime.run,
        round=round,
        client=client,
        spec=runtime.context.spec.fingerprint(),
        state_sha256=state.sha256(),
        state=payload,
        accepted_round=accepted,
        plan=plan,
    )


def dense(runtime, **changes):
    state = runtime.context.initial_state()
    return request(runtime, state, DenseCodec("fp32").encode(state, key=Key.root(0)), **changes)


def one(answers):
    (answer,) = answers
    return decode_reply(answer.data, max_bytes=10**6)
