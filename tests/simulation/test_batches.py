"""Who is a batch with whom, and that it hangs on the tasks alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.protocol.messages import ClientPlan, Payload, TrainRequest
from headwater.simulation.batches import batches
from headwater.tasks.batches import Example
from headwater.training.batched.groups import MOST_TOKENS, groups_of

TRAININGS = [BackpropTraining(kind="backprop", batch_size=size) for size in (1, 2, 16)]
ROWS = st.lists(st.integers(1, 60) | st.integers(50, 700), min_size=1, max_size=3)
CLIENTS = st.lists(
    st.tuples(st.sampled_from(TRAININGS), st.sampled_from([1.0, 1.0, 0.5]), ROWS | st.none()), max_size=40
)


def requests_of(clients):
    plans = [ClientPlan(training, DenseCodec(kind="dense"), factor) for training, factor, _ in clients]
    state = Payload("dense", b"")
    return [TrainRequest("r", 1, f"c{n}", "s", "h", state, 0, plan) for n, plan in enumerate(plans)]


def divided(clients, most, virtual=0):
    rows = {f"c{n}": lengths for n, (_, _, lengths) in enumerate(clients)}

    def size_of(request):
        lengths = rows[request.client]
        return None if lengths is None else (len(lengths), sum(n + virtual for n in lengths))

    return [list(batch) for batch in batches(requests_of(clients), most, size_of)], size_of, rows


@settings(max_examples=150, deadline=None, derandomize=True)
@given(clients=CLIENTS, most=st.integers(2, 30), virtual=st.sampled_from([0, 3, 40]))
def test_what_is_a_batch_is_one_for_the_trainer_too(clients, most, virtual):
    found, size_of, rows = divided(clients, most, virtual)
    assert sorted(r.client for batch in found for r in batch) == sorted(rows)
    for batch in found:
        assert [int(r.client[1:]) for r in batch] == sorted(int(r.client[1:]) for r in batch)
        assert list(batches(batch, most, size_of)) == [batch]  # what is trained again is trained alike
        if len(batch) > 1:
            tasks = [
                SimpleNamespace(
                    client=r.client,
                    plan=r.plan,
                    examples=[Example(np.zeros(n, np.int32), np.zeros(1)) for n in rows[r.client]],
                )
                for r in batch
            ]
            groups = groups_of(tasks, most, lambda task: True, virtual)
            assert [[t.client for t in group] for group in groups] == [[r.client for r in batch]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(clients=CLIENTS, most=st.integers(2, 30))
def test_a_batch_has_as_many_as_it_has_room_for(clients, most):
    found, size_of, rows = divided(clients, most)
    last = {}
    for batch in found:
        if (size_of(batch[0])) is None:
            assert len(batch) == 1
            continue
        key = batch[0].plan.training, batch[0].plan.learning_rate_factor
        if key in last and len(before := last[key]) < most:
            lengths = [n for r in (*before, batch[0]) for n in rows[r.client]]
            mean = -(-sum(lengths) // len(lengths))
            room = MOST_TOKENS // (batch[0].plan.training.batch_size * mean)
            own = list(rows[before[-1].client]) if len(before) == 1 else []
            alone = own and MOST_TOKENS // (key[0].batch_size * -(-sum(own) // len(own))) < 3
            assert alone or room < max(3, len(before) + 1)
        last[key] = batch
