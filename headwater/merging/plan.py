"""What a merge is told and fed: :class:`MergePlan`, and :class:`Update`, an update as the rules take it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

from headwater.errors import ConfigError
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.directions import Directions
from headwater.state import AdapterState, StateSpec

SUM_BITS = 62
"""Two sums of so many bits can be added in int64 before anybody looks."""
MASKED_BITS = 47
"""Of masked sums: with keys and shares 100,000 values take less than 1.5 times what they do as float32."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """What rounds told of how methods differ, and how far their updates lie apart.

    An update of method m is δ_i = c_m·(Δ + (what is its client's own, variance h)) + (noise, variance v_m);
    :mod:`headwater.merging.method_weights` says how it is weighed. Variances are squared L2 norms.

    Args:
        between: h, how far clients differ.
        noises: v by method.
        progress: c by method, in [0, 1]: how far its updates get of where the best method's do; 1 if absent.
    """

    between: float
    noises: Mapping[str, float]
    progress: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoiseShare:
    """Which part of a sum's noise each client draws.

    Args:
        honest: H, so many honest clients are in every sum: each draws 1/√H of the noise's σ.
        clients: that the units leave room for.

    Attributes:
        LEAST: the least σ, in units. Sums of discrete Gaussians are one but for a part of e^(-π²σ²).
        MOST: no draw is this many σ from 0 (:func:`headwater.privacy.noise.discrete_gaussian`).
    """

    LEAST: ClassVar[int] = 16
    MOST: ClassVar[int] = 28
    honest: int
    clients: int


@dataclass(frozen=True, slots=True)
class PrivateSum:
    """How a round's sum is released under differential privacy (``headwater.strategies.private_sum``).

    Args:
        clip: C, the L2 norm to which every update is shortened.
        multiplier: z, of all that the round releases together.
        expected: m, what the sum is divided by: fixed before the round, whoever answers.
        count_sigma: σ_b, the noise of how many updates were within C; None without adaptive clipping.
        quantile: γ, and ``rate`` η, of adaptive clipping.
        rate: see ``quantile``.
        shares: of the noise, that clients draw; None where the server draws it.
    """

    MOST_CLIENTS: ClassVar[int] = 2**20
    clip: float
    multiplier: float
    expected: float
    count_sigma: float | None = None
    quantile: float = 0.5
    rate: float = 0.2
    shares: NoiseShare | None = None

    @property
    def bits(self) -> int:
        """Of a unit of the sum, 2^-bits: as fine as leaves room for 2^20 clients, and 32 σ of noise.

        Under masks, as leaves room in :data:`MASKED_BITS` for all clients and all that they may draw.

        Raises:
            ConfigError: the noise leaves fewer than 8.
        """
        most = math.ceil(math.log2(self.clip * max(1.0, 2 * self.multiplier)))
        bits = min(52, 61 - 20 - math.ceil(math.log2(self.clip)), 49 - most)
        if (shares := self.shares) is not None:
            one = self.clip * (1 + NoiseShare.MOST * self.multiplier)  # H may rise while devices hold vectors
            bits = min(52, MASKED_BITS - 2 - math.ceil(math.log2(shares.clients * one)))
        if bits < 8:
            raise ConfigError(
                "private sum",
                expected="a clip and noise that leave 8 bits of int64 for fractions",
                got=f"clip {self.clip:g}, noise multiplier {self.multiplier:g}",
                hint="Lower privacy.clip_l2.",
            )
        return bits

    def longest(self, values: int) -> float:
        """Of one client's part of a sum of so many values, in units, L2: each is rounded by half of one."""
        return self.clip * 2.0**self.bits + math.sqrt(values) / 2

    def share(self, values: int) -> int:
        """σ of one client's share of the noise, in whole units: as many honest ones as there are have z.

        Raises:
            ConfigError: the noise is set by the server, or so small that shares do not add up to a Gaussian.
        """
        honest = 0 if self.shares is None else self.shares.honest
        sigma = math.ceil(self.multiplier * self.longest(values) / math.sqrt(honest)) if honest else 0
        if sigma < NoiseShare.LEAST:
            raise ConfigError(
                "private sum",
                expected=f"noise in shares of at least {NoiseShare.LEAST} units",
                got=str(sigma),
                hint="Raise privacy.noise_multiplier.",
            )
        return sigma


@dataclass(frozen=True)
class MergePlan:
    """Everything an aggregator must know before the first update arrives.

    Args:
        spec: the spec of every delta.
        weights: integer weight (≥ 1) of every client that may contribute, by enrolled name.
        value_bound: no value of a delta may be larger in magnitude; a power of two is exact.
        seeds: the seeds that scalars may use; None if every update is a delta.
        directions: what those seeds stand for; given with ``seeds``.
        tensors: for clients that train some tensors only: which. Others' values must be zero, and a
            tensor's mean is taken over the clients that train it.
        ranks: for clients that train the first components of each LoRA pair only: how many. Likewise.
        noise: what earlier rounds told of the methods; None before the first.
        groups: the method of each client, where methods are weighed; empty where they are not.
        claimed: the methods whose noise is their clients' word.
        use: whether to add up how far clients stepped along each seed.
        sum_bits: a signed sum of values takes at most so many bits, which decides their unit.
        norm_bound: the L2 norm to which every update is shortened before it is added
            (:mod:`headwater.server.rounds.norm_bound`); None for no bound.
        private: how the sum is released under differential privacy; None where it is merged as it is.
        others_weight: weight of the round's clients that are not named here, see :meth:`part`.
        others_methods: their methods.
        others_ranks: ranks that ``ranks`` has for any of the round's clients.
    """

    spec: StateSpec
    weights: Mapping[str, int]
    value_bound: float
    seeds: SeedPlan | None = None
    directions: Directions | None = None
    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    noise: NoisePlan | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    claimed: frozenset[str] = frozenset()
    use: bool = False
    norm_bound: float | None = None
    sum_bits: int = SUM_BITS
    private: PrivateSum | None = None
    others_weight: int = 0
    others_methods: frozenset[str] = frozenset()
    others_ranks: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.private is not None and not self.weights:
            return  # a round that drew nobody releases noise
        if not self.weights or min(self.weights.values()) < 1:
            raise ConfigError(
                "merge plan", expected="integer weights of at least 1", got=f"{dict(self.weights)}"
            )

    @cached_property
    def total_weight(self) -> int:
        """The sum of all weights: the most that any accumulated weight can reach."""
        return sum(self.weights.values()) + self.others_weight

    @cached_property
    def weighs(self) -> bool:
        """Whether there are methods to weigh against each other."""
        return len(self.methods) > 1

    @cached_property
    def methods(self) -> frozenset[str]:
        """The methods of all of the round's clients."""
        return self.others_methods.union(self.groups.values())

    @cached_property
    def all_ranks(self) -> frozenset[int]:
        """The ranks of all of the round's clients that train some components only."""
        return self.others_ranks.union(self.ranks.values())

    def part(self, clients: Collection[str]) -> MergePlan:
        """The plan as somebody is told it who adds up these clients alone: units and bounds are the same.

        What only a merge needs (``noise``, ``claimed``) is left out.

        Raises:
            ConfigError: no client, or one that is not in the plan.
        """
        if not clients or not set(clients) <= self.weights.keys():
            raise ConfigError("merge plan", expected="a part of its clients", got=f"{sorted(clients)[:3]}")
        weights = {client: self.weights[client] for client in clients}

        def of(table: Mapping[str, _Value]) -> dict[str, _Value]:
            return {client: value for client, value in table.items() if client in weights}

        return replace(
            self,
            weights=weights,
            tensors=of(self.tensors),
            ranks=of(self.ranks),
            groups=of(self.groups),
            noise=None,
            claimed=frozenset(),
            others_weight=self.total_weight - sum(weights.values()),
            others_methods=self.methods,
            others_ranks=self.all_ranks,
        )

    def scale_bits(self, bound: float | None = None, weight: int | None = None) -> int:
        """The largest f such that Σ weight·round(x·2^f) cannot overflow int64 for |x| ≤ ``bound``.

        ``weight`` is the most that the weights can sum to; by default W, that of the plan.

        |Σ w·round(x·2^f)| ≤ W·(bound·2^f + ½) < 2^62 whenever W·bound·2^f < 2^61 and W ≤ 2^61, so
        two such sums may still be added before the check. With b for :attr:`sum_bits` in place of 62, a sum
        and its sign take b bits. Never more than 52, so that x·2^f of an
        fp32 or fp64 x below 2^9 rounds once, exactly as in real arithmetic.

        Raises:
            ConfigError: the weights leave fewer than 8 fractional bits.
        """
        limit = self.value_bound if bound is None else bound
        total = self.total_weight if weight is None else weight
        bits = min(52, self.sum_bits - 1 - math.ceil(math.log2(limit)) - total.bit_length())
        if bits < 8:
            raise ConfigError(
                "merge plan",
                expected=f"weights and bounds that leave 8 of {self.sum_bits} bits for fractions",
                got=f"total weight {total}, bound {limit}",
                hint='Use weighting = "equal" or a smaller value_bound.',
            )
        return bits


@dataclass(frozen=True, slots=True)
class Update:
    """A decoded update.

    Args:
        client: enrolled name.
        round: which it answers.
        delta: what changed, relative to the state it started from: values, or coefficients of seeds.
        examples: that the client trains on.
        steps: taken.
        statistics: named statistics that the plan asked for.
        metrics: numbers for people.
        noise: v, the expected squared L2 distance of the delta from its own mean over the random
            directions it was made with; 0 for a method without any.
    """

    client: str
    round: int
    delta: AdapterState | SeedCoefficients
    examples: int
    steps: int = 0
    statistics: Mapping[str, AdapterState] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.0
