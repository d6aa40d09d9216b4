"""SimulatedAttacks: the clients of ``[[simulation.attackers]]`` at work.

They follow the protocol and lie in what they learnt: rows are changed before a training, its delta after it.
Then it is clipped, encoded and sent like any other, so that what is tried is what the *server* does. Attacks
depend on the file, the seed and the round alone: not on workers, engines, order, nor on a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from headwater.client.execution.runtime import ClientRuntime
from headwater.config.attackers import (
    Attacker,
    BackdoorAttacker,
    ColludeAttacker,
    FlipAttacker,
    ScaleAttacker,
)
from headwater.config.data import ClassificationData
from headwater.seeds.keys import Key
from headwater.simulation.attackers.collusion import alie, min_max
from headwater.simulation.attackers.roles import roles
from headwater.simulation.attackers.trigger import Trigger
from headwater.state import AdapterState
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.context import TrainingContext

BACKDOOR = "backdoor_success"
"""The metric: of held-out rows of other labels, the share that the trigger turns to its own."""


def with_attacks(runtime: ClientRuntime) -> ClientRuntime:
    """The same runtime; its attackers attack from now on.

    Raises:
        ConfigError: names that are no clients', or a fraction of nobody.
    """
    if runtime.context.loaded.settings.simulation.attackers:
        runtime.context = replace(runtime.context, attacks=SimulatedAttacks(runtime))
    return runtime


class SimulatedAttacks:
    """What they do, and how far they get.

    Args:
        runtime: model and data of all clients.

    Attributes:
        roles: by client that attacks, the number of its entry in the file.
    """

    def __init__(self, runtime: ClientRuntime) -> None:
        self._runtime = runtime
        self._settings = runtime.context.loaded.settings
        self.roles = roles(self._settings, runtime.data.clients, runtime.root)

    def by(self, trainer: CohortTrainer) -> CohortTrainer:
        """See :class:`headwater.training.context.Attacks`."""
        return AttackedTrainer(trainer, self)

    def success(self, context: TrainingContext, state: AdapterState) -> Mapping[str, float]:
        """:data:`BACKDOOR` on the server's rows, of the first backdoor in the file; nothing without any."""
        test = self._runtime.data.test()
        entries = [e for e in self.entries if isinstance(e, BackdoorAttacker)]
        if not entries or not test or not (rows := self.trigger(entries[0]).of_others(test)):
            return {}
        _, metrics = context.evaluate(state, rows)  # whose right label is the trigger's
        return {BACKDOOR: metrics["accuracy"]}

    @property
    def entries(self) -> tuple[Attacker, ...]:
        """The file's."""
        return self._settings.simulation.attackers

    def entry(self, client: str) -> Attacker | None:
        """How the client attacks; None if it does not."""
        index = self.roles.get(client)
        return None if index is None else self.entries[index]

    def trigger(self, attacker: BackdoorAttacker) -> Trigger:
        """The attacker's."""
        data, tokenizer = self._settings.data, self._runtime.context.tokenizer
        assert isinstance(data, ClassificationData), "the file is checked"
        assert tokenizer is not None, "classification has a base model"
        return Trigger.of(attacker.trigger, data.labels.index(attacker.target), tokenizer, data.max_tokens)

    def poisoned(self, task: TrainTask) -> TrainTask:
        """The task with the rows that the client trains on, the same in every round."""
        attacker = self.entry(task.client)
        if not isinstance(attacker, BackdoorAttacker):
            return task
        key = self._runtime.root.child("attackers", "rows", task.client)
        examples = self.trigger(attacker).poisoned(task.examples, attacker.poisoned, key)
        return replace(task, examples=examples)

    def sent(self, client: str, delta: AdapterState) -> AdapterState:
        """What the client sends in place of what it learnt."""
        attacker = self.entry(client)
        if isinstance(attacker, FlipAttacker):
            return delta * -attacker.factor
        if isinstance(attacker, ScaleAttacker | BackdoorAttacker):
            return delta * attacker.factor
        return delta

    def colluders(self, client: str) -> list[str]:
        """Who sends what the client sends, sorted; nobody where it colludes with none."""
        if not isinstance(self.entry(client), ColludeAttacker):
            return []
        return sorted(name for name, index in self.roles.items() if index == self.roles[client])

    def tasks_of(self, task: TrainTask) -> list[TrainTask]:
        """The task for each of the client's colluders, with its own rows."""
        data, rows = self._runtime.data, task.plan.rows
        return [
            replace(task, client=name, examples=data.client(name).train[:rows])
            for name in self.colluders(task.client)
        ]

    def agreed(self, client: str, deltas: Sequence[AdapterState]) -> AdapterState:
        """What the client and its colluders send, by what they learnt."""
        attacker = self.entry(client)
        assert isinstance(attacker, ColludeAttacker), "only they agree"
        rows = np.stack([delta.vector().double().numpy() for delta in deltas])
        found = (
            min_max(rows)
            if attacker.method == "min_max"
            else alie(rows, len(self._runtime.data.clients), attacker.deviations)
        )
        return AdapterState.from_vector(deltas[0].spec, torch.from_numpy(found.astype(np.float32)))

    @cached_property
    def memory(self) -> dict[tuple[bytes, int], list[TrainResult]]:
        """What the colluders of an entry learnt in the last round that they were asked for."""
        return {}


@dataclass(frozen=True)
class AttackedTrainer(CohortTrainer):
    """A trainer some of whose clients lie.

    Colluders know what each of them learnt. Whichever is asked has all of them trained, in one cohort of
    their own, so that what they send does not depend on who else is trained here.

    Args:
        honest: trains.
        attacks: of the simulation.
    """

    honest: CohortTrainer
    attacks: SimulatedAttacks

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:  # noqa: D102 - inherited
        own = [self.attacks.poisoned(t) for t in tasks if not self.attacks.colluders(t.client)]
        results = self.honest.train(own, key=key)
        for task in tasks:
            if self.attacks.colluders(task.client):
                yield self._colluding(task, key)
                continue
            result = next(results)
            if isinstance(result.delta, AdapterState):
                result = replace(result, delta=self.attacks.sent(task.client, result.delta))
            yield result

    def _colluding(self, task: TrainTask, key: Key) -> TrainResult:
        learnt = self._learnt(task, key)
        own = next(result for result in learnt if result.client == task.client)
        deltas = [result.delta for result in learnt if isinstance(result.delta, AdapterState)]
        if own.delta is None:
            return own
        return replace(own, delta=self.attacks.agreed(task.client, deltas))

    def _learnt(self, task: TrainTask, key: Key) -> list[TrainResult]:
        memory, which = self.attacks.memory, (key.digest, self.attacks.roles[task.client])
        if which not in memory:
            others = {known for known in memory if known[1] == which[1]}
            for known in others:
                del memory[known]
            memory[which] = list(self.honest.train(self.attacks.tasks_of(task), key=key))
        return memory[which]
