"""How many passes of tokens a request asks for: counted by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining, DecomflTraining, MezoTraining, NoopTraining
from headwater.protocol.messages import ClientPlan, EvaluateRequest, FisherPlan, Payload, TrainRequest
from headwater.simulation.devices.costs import Link, Power, Workload
from headwater.tasks.batches import Example


def rows(*lengths):
    return [Example(np.zeros(length, dtype=np.int32), np.zeros(1, dtype=np.int64)) for length in lengths]


class Data:
    """One client of five rows of 6 tokens on average, and 15 tokens to evaluate."""

    def client(self, name):
        return SimpleNamespace(train=rows(2, 4, 6, 8, 10), validation=rows(7, 8))


NOTHING = Payload("dense-fp32.v1", b"")


def train(training, **plan):
    asked = ClientPlan(training, DenseCodec(kind="dense"), **plan)
    return TrainRequest("run", 1, "ann", "spec", "0" * 64, NOTHING, 0, asked)


BACKPROP = BackpropTraining(kind="backprop", batch_size=2)


@pytest.mark.parametrize(
    ("training", "passes"),
    [
        (BACKPROP, 5 * 6 * 2),  # three steps: all rows, forward and backward
        (BACKPROP.model_copy(update={"epochs": 2.0}), 10 * 6 * 2),
        (BACKPROP.model_copy(update={"max_steps": 2}), 4 * 6 * 2),
        (BACKPROP.model_copy(update={"epochs": 2.0, "max_steps": 4}), (5 + 2) * 6 * 2),
        (BACKPROP.model_copy(update={"gradient_checkpointing": True}), 5 * 6 * 3),
        (MezoTraining(kind="mezo", batch_size=5, directions=2), 5 * 6 * 4),
        (DecomflTraining(kind="decomfl", batch_size=5, max_steps=1, directions=3), 5 * 6 * 4),
        (NoopTraining(kind="noop"), 5 * 6),
    ],
)
def test_a_training_takes_its_rows_once_for_every_pass(training, passes):
    assert Workload(Data()).passes(train(training)) == passes


def test_a_fisher_takes_forward_and_backward_on_its_examples():
    fisher = FisherPlan(examples=3, cap=1.0)
    assert Workload(Data()).passes(train(BACKPROP, fisher=fisher)) == 5 * 6 * 2 + 3 * 6 * 2


def test_an_evaluation_takes_one_pass_over_the_validation_split():
    request = EvaluateRequest("run", 1, "ann", "spec", "0" * 64, NOTHING)
    assert Workload(Data()).passes(request) == 15


def test_a_transfer_takes_its_latency_and_eight_bits_a_byte():
    link = Link(download_bps=8e6, upload_bps=None, latency_s=0.5)
    assert link.download(1_000_000) == 1_500_000
    assert link.upload(1_000_000) == 500_000
    assert replace(link, upload_bps=16e6).upload(1_000_000) == 1_000_000


def test_energy_is_power_times_time_and_bytes():
    power = Power(compute_watts=10, send_watts=3, receive_watts=2, joules_per_byte=0.5, idle_watts=99)
    assert power.joules(1_000_000, 2_000_000, 3_000_000, 4) == 2 * 1 + 10 * 2 + 3 * 3 + 0.5 * 4
