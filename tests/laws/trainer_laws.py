"""Laws of every CohortTrainer. Inherit :class:`TrainerLaws` and say how to make its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config.codec import DenseCodec
from headwater.config.training import Training
from headwater.errors import TrainingError
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask

quick = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
names = st.lists(st.text("abcdef/-7", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


class TrainerLaws(ABC):
    """One result per task in order; neighbours do not matter; same bits; divergence stays at home."""

    tells_losses = True
    """A training under differential privacy does not."""

    def like(self, left: TrainResult, right: TrainResult) -> bool:
        """Whether neighbours did not matter; to the bit, unless the trainer promises less."""
        return same(left, right)

    @abstractmethod
    def trainer(self) -> CohortTrainer:
        """A trainer, which may be shared."""

    @abstractmethod
    def start(self) -> AdapterState:
        """A state that it trains from."""

    @abstractmethod
    def examples(self) -> list[Example]:
        """A client's examples."""

    @abstractmethod
    def training(self) -> Training:
        """Settings that converge."""

    @abstractmethod
    def diverging(self) -> Training:
        """Settings with which any client diverges."""

    def plan(self, training: Training) -> ClientPlan:
        """What a client is asked; with seeds for a method that sends scalars."""
        return ClientPlan(training, DenseCodec(kind="dense"))

    def directions(self) -> Directions | None:
        """What the plan's seeds stand for."""
        return None

    @pytest.fixture(autouse=True)
    def _one_thread(self):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def task(self, client: str, **changes: object) -> TrainTask:
        plan = self.plan(self.training())
        task = TrainTask(client, self.start(), self.examples(), plan, self.directions())
        return replace(task, **changes)

    def run(self, tasks: list[TrainTask], seed: int = 0) -> list[TrainResult]:
        return list(self.trainer().train(tasks, key=Key.root(seed)))

    @quick
    @given(clients=names)
    def test_one_result_per_task_in_order(self, clients):
        results = self.run([self.task(name) for name in clients])
        assert [r.client for r in results] == clients
        for result in results:
            assert result.error is None
            assert result.delta is not None
            if isinstance(result.delta, SeedCoefficients):
                result.delta.require(self.plan(self.training()).seeds, result.client)
                assert list(result.delta.seeds) == sorted(result.delta.seeds)
                assert result.delta.coefficients.any()
            else:
                assert result.delta.spec == self.start().spec
                assert result.delta.isfinite()
            assert 0 <= result.noise < float("inf")
            assert result.examples == len(self.examples())
            assert ("loss" in result.metrics) == self.tells_losses

    @quick
    @given(clients=names, seed=st.integers(0, 2**62))
    def test_a_result_depends_on_its_task_and_key_only(self, clients, seed):
        together = self.run([self.task(name) for name in clients], seed)
        for result in reversed(together):
            (alone,) = self.run([self.task(result.client)], seed)
            assert self.like(alone, result)

    def test_clients_and_keys_differ(self):
        first, second = self.run([self.task("a"), self.task("b")])
        (other,) = self.run([self.task("a")], seed=1)
        assert bits(first.delta) != bits(second.delta)
        assert bits(first.delta) != bits(other.delta)

    def test_the_global_generator_is_neither_read_nor_moved(self):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = self.run([self.task("a")])
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(2)
        assert same(first[0], self.run([self.task("a")])[0])

    def test_a_diverged_client_harms_no_other(self):
        start = self.start()
        before = start.tobytes()
        bad = replace(self.task("b").plan, training=self.diverging())
        results = self.run([self.task("a"), self.task("b", plan=bad), self.task("c")])
        assert [r.client for r in results] == ["a", "b", "c"]
        assert results[1].delta is None
        assert isinstance(results[1].error, TrainingError)
        assert "b" in str(results[1].error)
        assert self.like(results[0], self.run([self.task("a")])[0])
        assert self.like(results[2], self.run([self.task("c")])[0])
        assert start.tobytes() == before

    def test_results_come_as_they_are_ready(self):
        results = self.trainer().train([self.task("a"), self.task("b")], key=Key.root(0))
        first = next(results)
        kept = bits(first.delta)
        list(results)
        assert bits(first.delta) == kept


def bits(delta: AdapterState | SeedCoefficients) -> bytes:
    """All that a delta says."""
    if isinstance(delta, SeedCoefficients):
        return delta.seeds.tobytes() + delta.coefficients.tobytes()
    return delta.tobytes()


def same(left: TrainResult, right: TrainResult) -> bool:
    """Bit for bit, wall-clock metrics aside."""
    timeless = [{k: v for k, v in r.metrics.items() if not k.endswith("_seconds")} for r in (left, right)]
    statistics = [{k: v.tobytes() for k, v in r.statistics.items()} for r in (left, right)]
    return (
        bits(left.delta) == bits(right.delta)
        and (left.client, left.steps, left.examples) == (right.client, right.steps, right.examples)
        and left.noise == right.noise
        and timeless[0] == timeless[1]
        and statistics[0] == statistics[1]
    )
