"""Who is a batch with whom, and that it hangs on the tasks alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.protocol.messages import ClientPlan, Payload, TrainRequest
from headwater.simulation.batches import AMPLE, batches
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
def test_there_are_no_more_batches_than_where_each_has_as_many_as_it_has_room_for(clients, most):
    found, size_of, rows = divided(clients, most)
    by_key, held = {}, {}
    for batch in found:
        if size_of(batch[0]) is None:
            assert len(batch) == 1
        else:
            by_key.setdefault((batch[0].plan.training, batch[0].plan.learning_rate_factor), []).append(batch)
    for key, made in by_key.items():
        held[key] = filled([r for batch in made for r in batch], most, rows)
        count, clients_of_key = len(held[key]), sum(map(len, made))
        assert len(made) in (count, count + count % 2)
        assert len(made) == count or clients_of_key // len(made) >= AMPLE


def filled(requests, most, rows):
    """Batches of this training, each with as many as it has room for."""
    done, batch = [], []

    def room(of):
        lengths = [n for r in of for n in rows[r.client]]
        return MOST_TOKENS // (of[0].plan.training.batch_size * -(-sum(lengths) // len(lengths)))

    for request in requests:
        if batch and room([*batch, request]) < max(3, len(batch) + 1):
            done, batch = [*done, batch], []
        batch = [*batch, request]
        if room(batch) < 3 or len(batch) == most:
            done, batch = [*done, batch], []
    return [*done, batch] if batch else done


@given(count=st.integers(1, 400), most=st.integers(2, 64), length=st.integers(1, 32))
def test_batches_of_clients_alike_are_equally_large(count, most, length):
    found, *_ = divided([(TRAININGS[0], 1.0, [length])] * count, most)
    sizes = [len(batch) for batch in found]
    most_alike = min(most, MOST_TOKENS // length)
    alike = count // -(-count // most_alike) >= AMPLE
    assert max(sizes) - min(sizes) <= 1 if alike else set(sizes[:-1]) <= {most_alike}
    assert max(sizes) <= min(most, MOST_TOKENS // length)


def test_a_hundred_clients_keep_two_processes_equally_busy():
    found, *_ = divided([(TRAININGS[1], 1.0, [16] * 8)] * 100, 32)
    assert [len(batch) for batch in found] == [25, 25, 25, 25]
    found, *_ = divided([(TRAININGS[1], 1.0, [16] * 8)] * 90, 32)
    assert [len(batch) for batch in found] == [22, 23, 22, 23]
    found, *_ = divided([(TRAININGS[1], 1.0, [16] * 8)] * 20, 8)
    assert [len(batch) for batch in found] == [8, 8, 4]  # each step of fewer would take longer
