"""The local methods of the federation file: ``[training]`` and what ``[methods]`` offers besides.

A method either descends along gradients (``backprop``), or along random directions whose slope two
forward passes, or one in forward mode, tell it. The latter keep no activations: their memory is that of
inference. ``kseed``, ``decomfl`` and ``blackbox`` send coefficients of seeds instead of a delta.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from headwater.config.plugins import open_to
from headwater.config.privacy import ExamplePrivacy
from headwater.config.script import ScriptTraining
from headwater.config.settings import by_kind
from headwater.config.traits import Distribution, Noise, SeedRange, Sends, Source, TrainingSettings


class MinibatchTraining(TrainingSettings):
    """What every method over batches has: how much it works, and how fast its rate falls."""

    epochs: float = Field(
        default=1.0, gt=0, le=1e9, description="passes over the client's train split a round"
    )
    max_steps: int | None = Field(default=None, ge=1, description="never more steps a round")
    batch_size: int = Field(default=16, ge=1, le=2**20)
    learning_rate: float = Field(gt=0)
    final_learning_rate_fraction: float = Field(
        default=1.0, ge=0, le=1, description="rates fall linearly over the rounds to this fraction"
    )
    trunk_cache_mb: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="memory for what reaches the first trained layer, of examples that come again: with "
        "`adapter.layers` the layers below then cost one pass over the data in all, instead of one for each "
        "step",
    )

    def steps(self, examples: int, batch_size: int | None = None) -> int:
        """Of a round: whole passes, cut where ``epochs`` or ``max_steps`` says; at least 1.

        Args:
            examples: that the client trains on.
            batch_size: instead of the file's.
        """
        batches = math.ceil(examples / (batch_size or self.batch_size))
        # 0.07 of 100 batches are 7, not the 8 that the product of two floats rounds up to
        steps = max(1, math.ceil(Fraction(str(self.epochs)) * batches))
        return min(steps, self.max_steps or steps)

    def steps_of(self, examples: int | None, batch_size: int | None = None) -> int | None:
        """:meth:`steps`, or ``max_steps`` where nobody knows the examples."""
        return self.max_steps if examples is None else self.steps(examples, batch_size)

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return "1 + backward"

    def cut(self, batch_size: int, max_steps: int | None) -> MinibatchTraining:  # noqa: D102 - inherited
        changes = {"batch_size": max(1, min(self.batch_size, batch_size))}
        if not self.fixed_steps and max_steps is not None:
            changes["max_steps"] = max(1, min(self.max_steps or max_steps, max_steps))
        return self.model_copy(update=changes)


class Directed(MinibatchTraining):
    """What the methods along random directions have."""

    noise: ClassVar[Noise] = "reported"
    learns_from: ClassVar[Source] = "losses"
    vectors: ClassVar[int] = 9
    distribution: Distribution = "rademacher"


class BackpropTraining(MinibatchTraining):
    """AdamW, or SGD, on the adapter and head of one client, starting afresh each round."""

    vectors: ClassVar[int] = 6
    later: ClassVar[tuple[str, ...]] = ("micro_batch_size", "privacy")
    kind: Literal["backprop"]
    learning_rate: float = Field(default=1e-3, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    lora_b_rate: float | None = Field(default=None, gt=0, le=1024)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    proximal_mu: float = Field(default=0.0, ge=0, description="FedProx (arXiv 1812.06127)")
    gradient_checkpointing: bool = False
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="rows of a step that are computed at once; their gradients are added up. No cohort then",
    )
    optimizer: Literal["adamw", "adamw8bit", "sgd"] = Field(
        default="adamw",
        description="adamw8bit needs bitsandbytes; sgd wants far larger rates",
    )
    privacy: ExamplePrivacy | None = Field(
        default=None,
        description="noise for each example: `max_grad_norm` bounds each example's gradient by itself, and "
        "`batch_size` is the expected number of a step's examples, which are drawn one by one",
    )

    @model_validator(mode="after")
    def _private(self) -> BackpropTraining:
        if self.privacy is None:
            return self
        if self.max_grad_norm is None or not 2.0**-40 <= self.max_grad_norm <= 2.0**40:
            raise ValueError(
                "training.privacy needs max_grad_norm, from 2^-40 to 2^40, to bound each example's gradient"
            )
        if self.trunk_cache_mb:
            raise ValueError(
                "training.privacy goes without trunk_cache_mb: its rows are drawn anew each step"
            )
        return self

    def rate_of(self, role: str) -> float:
        """The learning rate of a tensor of this role."""
        if role == "lora_b":
            return self.learning_rate * (self.lora_b_rate or 1.0)
        own = self.head_learning_rate if role == "head" else None
        return self.learning_rate if own is None else own

    def descent_rate(self, role: str) -> float | None:  # noqa: D102 - inherited
        plain = self.optimizer == "sgd" and not self.proximal_mu
        return self.rate_of(role) if plain and self.final_learning_rate_fraction else None

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return "2 + backward" if self.gradient_checkpointing else "1 + backward"

    def passes(self) -> float:  # noqa: D102 - inherited
        return 3.0 if self.gradient_checkpointing else 2.0

    def checkpoints(self) -> bool:  # noqa: D102 - inherited
        return self.gradient_checkpointing

    def example_privacy(self) -> ExamplePrivacy | None:  # noqa: D102 - inherited
        return self.privacy


class ForwardGradientTraining(Directed):
    """Forward gradients (FwdLLM, arXiv 2308.13894): mean of (∇L·v)v over K directions, by exact JVPs.

    The optimiser sees that estimate as if it were the gradient.
    """

    learns_from: ClassVar[Source] = "slopes"
    kind: Literal["forward_gradient"]
    learning_rate: float = Field(default=1e-3, gt=0)
    directions: int = Field(default=1, ge=1, description="K, directions of a step")
    candidates: int = Field(
        default=1,
        ge=1,
        description="of so many random directions the one most aligned with the gradient estimate so far "
        "is taken (discriminative sampling)",
    )
    variance_target: float | None = Field(
        default=None,
        gt=0,
        description="draw more directions, up to `max_directions`, until the variance of their mean falls "
        "below this multiple of its squared norm",
    )
    max_directions: int = Field(default=16, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")

    @model_validator(mode="after")
    def _enough(self) -> ForwardGradientTraining:
        if self.variance_target is not None and self.max_directions < max(2, self.directions):
            raise ValueError("max_directions is below 2, or below directions")
        return self

    def passes_text(self) -> str:  # noqa: D102 - inherited
        if self.variance_target is not None:
            return f"{max(2, self.directions)}–{self.max_directions} in forward mode"
        return f"{self.directions} in forward mode"

    def passes(self) -> float:
        """``directions`` of them: how many a ``variance_target`` takes is not known beforehand."""
        return 2.0 * self.directions


class SpryTraining(Directed):
    """SPRY (arXiv 2405.15551): forward gradients of the few layers that this client was given."""

    learns_from: ClassVar[Source] = "slopes"
    needs_rounds: ClassVar[bool] = True
    splits_layers: ClassVar[bool] = True
    kind: Literal["spry"]
    learning_rate: float = Field(default=1e-3, gt=0)
    layers_per_client: int = Field(default=1, ge=1, description="layers that the server gives a client")
    directions: int = Field(default=1, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return f"{self.directions} in forward mode"

    def passes(self) -> float:  # noqa: D102 - inherited
        return 2.0 * self.directions


class MezoTraining(Directed):
    """MeZO (arXiv 2305.17333): n-SPSA with seeds instead of stored directions; sends a delta."""

    vectors: ClassVar[int] = 10
    kind: Literal["mezo"]
    learning_rate: float = Field(default=1e-4, gt=0)
    epsilon: float = Field(default=1e-3, gt=0, description="how far a loss is probed")
    directions: int = Field(default=1, ge=1, description="n, averaged in a step")
    sparsity: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="this fraction of each tensor, the largest magnitudes, stays (Sparse-MeZO, 2402.15751)",
    )
    low_rank: int | None = Field(
        default=None, ge=1, description="directions of matrices are U·Vᵀ of this rank (LOZO, 2410.07698)"
    )
    resample_every: int = Field(default=50, ge=1, description="steps that share V, with low_rank")
    gradient_bound: float = Field(default=64.0, gt=0, description="a slope beyond it counts as this much")

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return str(2 * self.directions)

    def passes(self) -> float:  # noqa: D102 - inherited
        return 2.0 * self.directions


class ScalarPasses(Directed):
    """What the methods that send coefficients of seeds have."""

    sends: ClassVar[Sends] = "coefficients"
    noise: ClassVar[Noise] = "from coefficients"
    vectors: ClassVar[int] = 12
    learning_rate: float = Field(default=1e-4, gt=0)
    epsilon: float = Field(default=5e-4, gt=0, description="how far a loss is probed")
    gradient_bound: float = Field(default=64.0, gt=0, description="a slope beyond it counts as this much")

    def largest_step(self) -> float:  # noqa: D102 - inherited
        return self.learning_rate * self.gradient_bound


class KseedTraining(ScalarPasses):
    """FedKSeed (arXiv 2312.06353): steps along K seeds that all clients share; sends their coefficients.

    ``pro`` draws a seed the more often the steeper clients found losses along it in earlier rounds.
    """

    alike: ClassVar[tuple[str, ...]] = ("seeds", "pro", "distribution", "learning_rate", "gradient_bound")
    kind: Literal["kseed"]
    epochs: float = Field(
        default=1e9, gt=0, le=1e9, description="passes over the train split; `max_steps` counts"
    )
    max_steps: int | None = Field(default=200, ge=1, le=65_535, description="τ, steps a round")
    seeds: int = Field(default=4096, ge=8, le=2**20, description="K")
    pro: bool = Field(
        default=False,
        description="draw seeds the more often the steeper losses were along them, by what the server knows "
        "of all clients' earlier rounds (FedKSeed-Pro); half a byte down for each seed",
    )

    @model_validator(mode="after")
    def _bounded(self) -> KseedTraining:
        if self.max_steps is None:
            raise ValueError("max_steps must be given: it bounds the update's size")
        return self

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return "2"

    def seed_range(self, round: int) -> SeedRange:
        """The same K seeds in every round."""
        return SeedRange(0, self.seeds, self.max_steps or 0, self.distribution, self.largest_step())


class DecomflTraining(ScalarPasses):
    """DeComFL (arXiv 2405.15861): all clients step along the round's seeds; sends one scalar for each.

    Forward differences: one loss more than directions. An absent client catches up by scalars.
    """

    needs_rounds: ClassVar[bool] = True
    fixed_steps: ClassVar[bool] = True
    fresh_seeds: ClassVar[bool] = True
    alike: ClassVar[tuple[str, ...]] = (
        "directions",
        "max_steps",
        "distribution",
        "learning_rate",
        "gradient_bound",
    )
    kind: Literal["decomfl"]
    epsilon: float = Field(default=1e-3, gt=0, description="how far a loss is probed")
    epochs: float = Field(
        default=1e9, gt=0, le=1e9, description="passes over the train split; `max_steps` counts"
    )
    max_steps: int | None = Field(default=20, ge=1, le=65_535, description="local steps a round")
    directions: int = Field(default=5, ge=1, le=1024, description="P, directions of a step")

    @model_validator(mode="after")
    def _bounded(self) -> DecomflTraining:
        if self.max_steps is None:
            raise ValueError("max_steps must be given: every client makes the same number of steps")
        if self.max_steps * self.directions >= 2**17:
            raise ValueError("max_steps times directions must be below 131,072, or sums could overflow")
        return self

    def steps_of(self, examples: int | None, batch_size: int | None = None) -> int | None:
        """``max_steps``, whatever the data: all clients of a round go along the same seeds."""
        return self.max_steps

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return str(self.directions + 1)

    def passes(self) -> float:  # noqa: D102 - inherited
        return self.directions + 1.0

    def seed_range(self, round: int) -> SeedRange:
        """New seeds in every round: one for each direction of each step, and one coefficient for each."""
        count = (self.max_steps or 0) * self.directions
        largest = self.largest_step() / self.directions
        return SeedRange((round - 1) * count, count, count, self.distribution, largest, implied=True)


COORDINATE_BOUND = 8.0
"""Coordinates of the black box's search are clipped to ± this, or up to twice that: to what 16 bits hold."""


class BlackboxTraining(TrainingSettings):
    """CMA-ES on a projection of the soft prompt (BBTv2, arXiv 2205.11200; Fed-BBPT, 2310.03123).

    The model is only asked for losses. Sends the coordinates of the search's mean, as coefficients of seeds.
    """

    sends: ClassVar[Sends] = "coefficients"
    noise: ClassVar[Noise] = "reported"  # a point, no noisy steps
    learns_from: ClassVar[Source] = "losses"
    fixed_steps: ClassVar[bool] = True
    needs_prompt: ClassVar[bool] = True
    vectors: ClassVar[int] = 10
    alike: ClassVar[tuple[str, ...]] = ("dimensions", "distribution", "scale", "sigma")
    kind: Literal["blackbox"]
    dimensions: int = Field(default=64, ge=2, le=1024, description="of the space that is searched")
    population: int = Field(default=16, ge=4, le=1024)
    generations: int = Field(default=10, ge=1, le=100_000, description="a round")
    sigma: float = Field(default=0.2, gt=0, description="first standard deviation of a coordinate")
    scale: float = Field(default=0.1, gt=0, description="of the prompt's change for a coordinate of 1")
    batch_size: int = Field(default=16, ge=1, le=2**20)
    distribution: Distribution = "gaussian"

    def steps_of(self, examples: int | None, batch_size: int | None = None) -> int:
        """Its generations."""
        return self.generations

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return str(self.population)

    def passes(self) -> float:  # noqa: D102 - inherited
        return float(self.population)

    def cut(self, batch_size: int, max_steps: int | None) -> BlackboxTraining:  # noqa: D102 - inherited
        return self.model_copy(update={"batch_size": max(1, min(self.batch_size, batch_size))})

    def seed_range(self, round: int) -> SeedRange:
        """One seed for each coordinate of its search, the same in every round."""
        count = self.dimensions
        return SeedRange(0, count, count, self.distribution, self.largest_step(), implied=True)

    def largest_step(self) -> float:  # noqa: D102 - inherited
        return self.scale * COORDINATE_BOUND


class NoopTraining(TrainingSettings):
    """No training: a reproducible random change, for transport and load experiments."""

    learns_from: ClassVar[Source] = "nothing"
    alone: ClassVar[bool] = True
    kind: Literal["noop"]
    scale: float = Field(default=1e-3, gt=0)

    def passes(self) -> float:  # noqa: D102 - inherited
        return 1.0


Training = Annotated[
    BackpropTraining
    | ForwardGradientTraining
    | SpryTraining
    | MezoTraining
    | KseedTraining
    | DecomflTraining
    | BlackboxTraining
    | ScriptTraining
    | NoopTraining,
    Field(discriminator="kind"),
    open_to("trainers", TrainingSettings),
]

TRAINING_KINDS = tuple(by_kind(Training))
"""Every ``kind`` of :data:`Training`."""
