"""StandIns: who trains in an audited run, who only seems to, and the canaries among them.

A fair coin for every owner and every canary says who is *in*. Who is out is no client, as ε for an owner
added or removed has it; where ε is for one replaced, or whose updates are set to nothing, it is a client that
sends zeros (:func:`stays`). Without noise in ``[privacy]`` there are no canaries: nothing bounds how loud
they may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from headwater.config.federation import Federation
from headwater.errors import ConfigError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.context import TrainingContext

CANARIES = 1000
"""As many as the adapter has values, if these are fewer."""
Coins = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StandIns:
    """The clients of an audited run. Make it with :meth:`of`. Attacks of a :class:`TrainingContext`.

    Args:
        owners: names of those whose coin was thrown, sorted.
        inside: whether each is in.
        canaries: names.
        canaries_inside: whether each is in.
        places: the value of the adapter that each canary moves.
        clip: how far, in one round.
        rows_of: by client, whose rows it has: all clients of the run.
    """

    owners: Sequence[str]
    inside: Coins
    canaries: Sequence[str]
    canaries_inside: Coins
    places: npt.NDArray[np.int64]
    clip: float
    rows_of: Mapping[str, str]
    _sent: dict[str, int | None] = field(default_factory=dict)

    @staticmethod
    def of(settings: Federation, names: Sequence[str], spec: StateSpec, canaries: int | None) -> StandIns:
        """Throw the coins, by the file's seed.

        Args:
            settings: the federation's.
            names: of its owners, sorted.
            spec: of its adapter.
            canaries: how many; None: :data:`CANARIES` where there can be some.

        Raises:
            ConfigError: canaries where there can be none, or more than values; or fewer than four owners.
        """
        key = Key.root(settings.federation.seed).child("audit")
        count = _canaries(settings, spec, canaries)
        owners = [name for name in names if name not in settings.strategy.always]
        if len(owners) < 4:
            raise ConfigError("headwater audit", expected="four owners or more", got=str(len(owners)))
        inside = _coins(key.child("owners"), len(owners))
        made = [f"canary-{number:06d}" for number in range(count)]
        if taken := set(made) & set(names):
            raise ConfigError("an owner's name", expected="none of a canary", got=min(taken))
        canaries_inside = _coins(key.child("canaries"), count) if count else np.zeros(0, bool)
        places = key.child("places").numpy().permutation(spec.numel)[:count]
        out = {name for name, mark in zip(owners, inside.tolist(), strict=True) if not mark}
        sent: dict[str, int | None] = dict.fromkeys(out)
        marks = zip(made, places.tolist(), canaries_inside.tolist(), strict=True)
        sent |= {name: place if mark else None for name, place, mark in marks}
        rows_of = {name: name for name in names}
        rows_of |= {name: names[number % len(names)] for number, name in enumerate(made)}
        if not stays(settings):
            rows_of = {name: owner for name, owner in rows_of.items() if sent.get(name, 0) is not None}
        clip = settings.privacy.clip_l2 or 0.0
        return StandIns(owners, inside, made, canaries_inside, places, clip, rows_of, sent)

    def by(self, trainer: CohortTrainer) -> CohortTrainer:
        """See :class:`headwater.training.context.Attacks`."""
        return _AuditedTrainer(trainer, self)

    def success(self, context: TrainingContext, state: AdapterState) -> Mapping[str, float]:
        """Nothing that rounds should tell."""
        return {}

    def trains(self, client: str) -> bool:
        """Whether it trains on its rows."""
        return client not in self._sent

    def sent(self, client: str, spec: StateSpec) -> AdapterState:
        """What a client that does not train sends: one value as long as the bound allows, or zeros."""
        values, place = torch.zeros(spec.numel), self._sent[client]
        if place is not None:
            values[place] = self.clip
        return AdapterState.from_vector(spec, values)


def stays(settings: Federation) -> bool:
    """Whether an owner who is out is still asked."""
    return settings.privacy.noised and (settings.cohort.fixed_sample or settings.privacy.correlated)


@dataclass(frozen=True)
class _AuditedTrainer(CohortTrainer):
    """A trainer of whose clients some send what the audit has them send."""

    honest: CohortTrainer
    who: StandIns

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        results = self.honest.train([task for task in tasks if self.who.trains(task.client)], key=key)
        for task in tasks:
            if self.who.trains(task.client):
                yield next(results)
                continue
            metrics = {} if task.plan.training.example_privacy() else {"loss": 0.0}
            delta = self.who.sent(task.client, task.state.spec)
            yield TrainResult(task.client, delta, len(task.examples), steps=1, metrics=metrics)


def _coins(key: Key, count: int) -> Coins:
    """Fair and independent; some on either side, or nothing could be told apart."""
    found: Coins = key.numpy().random(count) < 0.5
    if count >= 4:
        return found if 1 < found.sum() < count - 1 else np.arange(count) % 2 == 0
    return found


def _canaries(settings: Federation, spec: StateSpec, asked: int | None) -> int:
    if not settings.privacy.noised:
        most, why = 0, "without noise in [privacy] nothing bounds how loud a canary may be"
    elif settings.cohort.fixed_sample:
        most, why = 0, "canaries would take owners' places in cohorts of a fixed size"
    else:
        most, why = spec.numel, "each moves a value of the adapter that is its own"
    if asked is None:
        return min(CANARIES, most)
    if not (asked == 0 or 2 <= asked <= most):
        raise ConfigError(
            f"--canaries {asked}",
            expected=f"2 to {most:,}, or 0" if most else f"0: {why}",
            got=str(asked),
            hint="Leave it out: then there are as many as can be.",
        )
    return asked
