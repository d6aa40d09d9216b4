"""What happens to a merged round before the server's optimiser: :class:`MergeTransform`, one class a step.

A rule says what a round's updates come to (:class:`~headwater.merging.aggregator.Merged`), and the optimiser
moves the adapter by it. Between them each transform takes the server's state and the merged round, and gives
both on: it may change what the optimiser gets, and note in the state what later rounds must know. Pure: no
file, no clock, nothing kept between two calls. :func:`merge_transforms` says which ones a federation has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from headwater.config.federation import Federation
from headwater.config.training import KseedTraining
from headwater.errors import HeadwaterError
from headwater.merging.aggregator import Merged
from headwater.strategies.learning_rate import learning_rate_factor
from headwater.strategies.private_turns import after_round
from headwater.strategies.strategy import ServerState


class MergeTransform(ABC):
    """One step between ``Aggregator.finalize`` and the server's optimiser."""

    @abstractmethod
    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:
        """The state with what is to be remembered of the round, and what the next step gets of it.

        Args:
            server: as it was before the round: ``server.round + 1`` is the round's number, and neither the
                adapter nor the momentum has moved.
            merged: what the rule made of the round, or the transform before this one.

        Raises:
            HeadwaterError: this federation's rounds cannot merge to that.
        """


class RememberNoise(MergeTransform):
    """Keep how far the updates lay apart: methods are weighed by it in the next round.

    A round of one method tells nothing of that, and leaves what was known.
    """

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        return replace(server, noise=merged.noise or server.noise), merged


class RememberControl(MergeTransform):
    """Keep the control variate that the round came to (SCAFFOLD)."""

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        return replace(server, control=merged.control or server.control), merged


class RememberShift(MergeTransform):
    """Keep the sum of what EF21's clients have sent."""

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        return replace(server, shift=merged.shift or server.shift), merged


class RememberClip(MergeTransform):
    """Keep the bound that adaptive clipping came to."""

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        if server.privacy is None or merged.clip is None:
            return server, merged
        return replace(server, privacy=replace(server.privacy, clip=merged.clip)), merged


@dataclass(frozen=True)
class RememberAsked(MergeTransform):
    """Keep whom the round asked, where noise is for owners who are asked so many rounds apart.

    Args:
        federation: the file; a sequence of noise that has ended is followed by another.
    """

    federation: Federation

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        state = after_round(self.federation, server, merged.asked)
        return replace(server, privacy=state), merged


@dataclass(frozen=True)
class RememberSlopes(MergeTransform):
    """Keep how steep the losses were along each seed: ``kseed`` with ``pro`` draws steep ones more often.

    Args:
        training: whose steps tell it.
        rounds: of the run, for the learning rate at which they were made.
    """

    training: KseedTraining
    rounds: int

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        if server.seed_slopes is None or merged.use is None:
            return server, merged
        rate = learning_rate_factor(self.training, server.round + 1, self.rounds)
        return replace(server, seed_slopes=server.seed_slopes.after(merged.use, rate)), merged


@dataclass(frozen=True)
class ScaleCoefficients(MergeTransform):
    """Where the adapter is its origin plus coefficients, apply the server's rate to whole coefficients.

    Clients are sent the coefficients, so they must be integers: exactly those of the mean at rate 1, else
    rounded to the nearest, ties to even. After a rollback the adapter is values, and nothing is changed.

    Args:
        rate: ``strategy.server_learning_rate``.
    """

    rate: float

    def apply(self, server: ServerState, merged: Merged) -> tuple[ServerState, Merged]:  # noqa: D102 - inherited
        if server.seeded_state is None:
            return server, merged
        if merged.coefficients is None:
            number = server.round + 1
            merged.delta.require_spec(server.seeded_state.origin.spec, f"round {number}, merged delta")
            raise HeadwaterError(
                f"round {number}",
                expected="coefficients of seeds alone, as every method of the file sends them",
                got="values",
                hint="This is a fault of the server: please report it with the federation file.",
            )
        change = np.rint(merged.coefficients * self.rate).astype(np.int64)
        return server, replace(merged, coefficients=change)


def merge_transforms(federation: Federation) -> tuple[MergeTransform, ...]:
    """The steps of a federation, in order."""
    strategy = federation.strategy
    steps: list[MergeTransform] = [RememberNoise()]
    if strategy.control_variates:
        steps.append(RememberControl())
    if federation.codec.up.shifts:
        steps.append(RememberShift())
    if federation.privacy.adaptive is not None:
        steps.append(RememberClip())
    if federation.privacy.correlated:
        steps.append(RememberAsked(federation))
    if (pro := pro_training(federation)) is not None:
        steps.append(RememberSlopes(pro, federation.federation.rounds))
    steps.append(ScaleCoefficients(strategy.server_learning_rate))
    return tuple(steps)


def pro_training(federation: Federation) -> KseedTraining | None:
    """The ``kseed`` whose seeds are drawn by how steep losses are along them; None without one."""
    kseeds = (t for t in federation.trainings.values() if isinstance(t, KseedTraining))
    return next((t for t in kseeds if t.pro and federation.strategy.linear), None)
