"""What happens to an update between training and the wire: :class:`UpdateTransform`, one class a step.

A pipeline is made for one client's task, from the plan (:func:`pipeline_for`): error feedback, cover, clip,
encode, each where the plan asks for it. A transform is a pure function of the update and of what it was made
with: it reads no file and keeps nothing. What the client must keep and what the server is told ride with the
update (:class:`OutgoingUpdate`); :mod:`.execute` stores and sends them.

Every transform also says what it guarantees of *any* update, given what held before it
(:class:`Guarantees`). A pipeline works that out when it is made, and refuses an order after which the plan's
promises would not hold: feedback after clipping would lift what leaves above the bound, feedback after
covering would send values that the server refuses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from headwater.compression.feedback import FeedbackState, compensate
from headwater.compression.just_made import remember
from headwater.compression.seed_update import encode_scalars
from headwater.compression.table import codec_for
from headwater.config.codec import Codec
from headwater.errors import ConfigError
from headwater.merging.coverage import covered
from headwater.privacy.clip import clip_l2
from headwater.privacy.sensitivity import ROUNDING, Bounded, Sensitivity, Unbounded
from headwater.protocol.messages import ClientPlan, Payload
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, sparse_where_few


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What holds of every update at one place of a pipeline, whatever the client's data are.

    Args:
        sensitivity: a bound of its L2 norm, or none.
        covered: it is zero wherever the plan gives the client nothing to train.
        encoded: it is a payload; nothing may change its values any more.
    """

    sensitivity: Sensitivity = field(default_factory=Unbounded)
    covered: bool = False
    encoded: bool = False

    def keep(self, promised: Guarantees) -> bool:
        """Whether all that is ``promised`` holds."""
        bound = promised.sensitivity
        short = isinstance(bound, Unbounded) or (
            isinstance(self.sensitivity, Bounded) and self.sensitivity.l2 <= bound.l2
        )
        return short and self.covered >= promised.covered and self.encoded >= promised.encoded


@dataclass(frozen=True, slots=True)
class OutgoingUpdate:
    """An update on its way from the trainer to the wire.

    Args:
        values: the delta so far; zeros where coefficients are sent. Once encoded, and only where something is
            ``held``: what the server will decode.
        coefficients: of the plan's seeds, in place of values.
        noise: v, the expected squared L2 distance of ``values`` from their mean over the trainer's random
            directions: the server is told it where the method reports it.
        held: all that the server is to get sooner or later, where error feedback is used: what of it does not
            arrive with this update is the residual that the client must keep. None without.
        payload: the bytes to send; None until encoded.
    """

    values: AdapterState
    coefficients: SeedCoefficients | None = None
    noise: float = 0.0
    held: AdapterState | None = None
    payload: Payload | None = None

    @staticmethod
    def of(learned: AdapterState | SeedCoefficients, spec: StateSpec, noise: float = 0.0) -> OutgoingUpdate:
        """What a trainer learned, before any transform."""
        if isinstance(learned, SeedCoefficients):
            return OutgoingUpdate(AdapterState.zeros(spec), learned, noise)
        return OutgoingUpdate(learned, noise=noise)


class UpdateTransform(ABC):
    """One step of an update's way out. Pure: no file, no clock, no state between two calls."""

    @abstractmethod
    def guarantees(self, before: Guarantees) -> Guarantees:
        """What holds after it, given what holds ``before`` it.

        Raises:
            ConfigError: it must not stand here.
        """

    @abstractmethod
    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:
        """The update after this step.

        Raises:
            TrainingError: values that are not finite, or coefficients that the plan does not allow.
            StorageError, SpecMismatch: the residual does not belong here.
        """


@dataclass(frozen=True, slots=True)
class ErrorFeedback(UpdateTransform):
    """Add what earlier updates left behind. A residual has any length, and values anywhere.

    Args:
        settled: the client's feedback, with no update pending.
    """

    settled: FeedbackState

    def guarantees(self, before: Guarantees) -> Guarantees:  # noqa: D102 - inherited
        _values_needed("error feedback", before)
        return Guarantees()

    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:  # noqa: D102 - inherited
        held = compensate(self.settled, update.values)
        return replace(update, values=held, held=held)


@dataclass(frozen=True, slots=True)
class Cover(UpdateTransform):
    """Zero what the plan does not give this client; a residual's part outside stays in the residual.

    Args:
        mask: what it trains, bool [numel].
    """

    mask: Tensor

    def guarantees(self, before: Guarantees) -> Guarantees:  # noqa: D102 - inherited
        _values_needed("cover", before)
        return replace(before, covered=True)  # no update gets longer

    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:  # noqa: D102 - inherited
        values = update.values.vector()
        inside = torch.where(self.mask, values, torch.zeros_like(values))
        return replace(update, values=AdapterState.from_vector(update.values.spec, inside))


@dataclass(frozen=True, slots=True)
class Clip(UpdateTransform):
    """Shorten an update to the bound (:func:`headwater.privacy.clip.clip_l2`), and its noise with it.

    Args:
        bound: C, of the L2 norm.
    """

    bound: float

    def guarantees(self, before: Guarantees) -> Guarantees:  # noqa: D102 - inherited
        _values_needed("clip", before)
        return replace(before, sensitivity=Bounded(self.bound))

    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:  # noqa: D102 - inherited
        values, norm = clip_l2(update.values, self.bound)
        shrunk = min(1.0, self.bound / norm) if norm else 1.0
        return replace(update, values=values, noise=update.noise * shrunk**2)


@dataclass(frozen=True, slots=True)
class Encode(UpdateTransform):
    """Values to bytes. Rounding lifts a bound by :data:`ROUNDING`; a codec that may lengthen has none.

    Args:
        codec: the plan's.
        key: of this client's random rounding in this round.
    """

    codec: Codec
    key: Key

    def guarantees(self, before: Guarantees) -> Guarantees:  # noqa: D102 - inherited
        _values_needed("encode", before)
        bound: Sensitivity = Unbounded()
        if isinstance(before.sensitivity, Bounded) and not self.codec.may_lengthen():
            bound = Bounded(before.sensitivity.l2 * ROUNDING)
        return replace(before, sensitivity=bound, encoded=True)

    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:  # noqa: D102 - inherited
        codec = codec_for(self.codec)
        if update.held is None:  # nobody asks what arrives
            return replace(update, payload=codec.encode(update.values, key=self.key))
        payload, values = codec.round_trip(update.values, key=self.key)
        if not self.codec.is_of_a_round():  # such places are read with the plan's
            remember(payload, values)
        return replace(update, payload=payload, values=values)


@dataclass(frozen=True, slots=True)
class EncodeCoefficients(UpdateTransform):
    """Coefficients of seeds to bytes, exactly. Of a residual that an earlier delta left they carry nothing.

    Args:
        seeds: the plan's.
        who: the client, for errors.
    """

    seeds: SeedPlan
    who: str

    def guarantees(self, before: Guarantees) -> Guarantees:  # noqa: D102 - inherited
        _values_needed("encode coefficients", before)
        return Guarantees(encoded=True)  # seeds move the whole adapter, as far as gradient_bound lets them

    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:  # noqa: D102 - inherited
        assert update.coefficients is not None, "execute checks what the trainer sends"
        update.coefficients.require(self.seeds, self.who)
        payload = encode_scalars(update.coefficients)
        return replace(
            update, payload=payload, values=sparse_where_few(AdapterState.zeros(update.values.spec))
        )


class UpdatePipeline:
    """Transforms in an order that keeps what was promised.

    Args:
        transforms: in order.
        promised: what the server relies on, of what leaves.

    Attributes:
        guarantees: what holds of what leaves.

    Raises:
        ConfigError: the order is unsound.
    """

    def __init__(self, transforms: Sequence[UpdateTransform], promised: Guarantees) -> None:
        self.transforms = tuple(transforms)
        self.guarantees = reduce(lambda held, step: step.guarantees(held), self.transforms, Guarantees())
        if not self.guarantees.keep(promised):
            raise ConfigError(
                "update pipeline",
                expected=f"an order after which {promised} holds",
                got=f"{' > '.join(type(step).__name__ for step in self.transforms)}: {self.guarantees}",
                hint="Error feedback comes first, then cover, clip and what needs a bound; encode is last.",
            )

    def apply(self, update: OutgoingUpdate) -> OutgoingUpdate:
        """The update, ready to be sent."""
        return reduce(lambda moved, step: step.apply(moved), self.transforms, update)


def pipeline_for(
    plan: ClientPlan, spec: StateSpec, feedback: FeedbackState | None, *, key: Key, who: str
) -> UpdatePipeline:
    """The pipeline of one client's task.

    Args:
        plan: what it is asked.
        spec: of the adapter.
        feedback: the client's, settled; None where nothing is kept.
        key: of the codec, for this client and round.
        who: the client, for errors.

    Raises:
        ConfigError: the plan asks for what cannot be kept, such as a bound of coefficients.
    """
    mask = covered(spec, plan.tensors, plan.rank)
    steps: list[UpdateTransform] = [] if feedback is None else [ErrorFeedback(feedback)]
    if plan.seeds is not None:
        steps.append(EncodeCoefficients(plan.seeds, who))
    else:
        steps += [] if mask is None else [Cover(mask)]
        steps += [] if plan.clip_l2 is None else [Clip(plan.clip_l2)]
        steps.append(Encode(plan.codec, key))
    return UpdatePipeline(steps, _promised(plan, mask))


def _promised(plan: ClientPlan, mask: Tensor | None) -> Guarantees:
    """What the server relies on (``OpenRound.check``, ``require_covered``)."""
    bound = Unbounded() if plan.clip_l2 is None else Bounded(plan.clip_l2 * ROUNDING)
    return Guarantees(bound, covered=mask is not None, encoded=True)


def _values_needed(step: str, before: Guarantees) -> None:
    if before.encoded:
        raise ConfigError(
            "update pipeline", expected=f"'{step}' before the update is encoded", got="it after encoding"
        )
