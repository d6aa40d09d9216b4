"""FederatedStrategy: the strategy of a federation file.

Local training on a cohort, each client with its own method, a merge rule, and a server optimiser
(:mod:`.server_optimizers`), which is FedAvg unless the file says otherwise. Where every method sends
coefficients of seeds, the server moves coefficients (``seeds.seeded_state.SeededState``). Which tensors
travel (A is left out in ``ffa``) is decided where the model is built: nothing here depends on the space.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from headwater.compression.seed_state import MAX_SUMS
from headwater.compression.table import readable
from headwater.config.codec import DENSITY_OVER
from headwater.config.federation import Federation
from headwater.config.strategy import FisherStrategy
from headwater.errors import FederationStopped, HeadwaterError
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.control_variates import ControlPlan
from headwater.merging.coverage import last_layers
from headwater.merging.pairs import shared_tensors
from headwater.merging.plan import MASKED_BITS, SUM_BITS, MergePlan
from headwater.privacy.events import SequenceReleased, SharesReleased, SumReleased
from headwater.privacy.noise import (
    Integers,
    Randomness,
    ReproducibleRandomness,
    SystemRandomness,
)
from headwater.protocol.messages import ClientPlan, ClientProfile, FisherPlan
from headwater.seeds.coefficients import FINE_BITS, SeedPlan, directions_of
from headwater.seeds.draw_weights import odds_of
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.seeds.slopes import SeedSlopes
from headwater.state import AdapterState, StateSpec
from headwater.strategies.assignment import Assigned, assign, completed_names
from headwater.strategies.budget import codec_for_link, codec_of_client, codec_within
from headwater.strategies.error_shift import ShiftPlan
from headwater.strategies.layers import one_factor, trained_tensors
from headwater.strategies.learning_rate import learning_rate_factor
from headwater.strategies.links import link_bytes
from headwater.strategies.merge_transforms import merge_transforms, pro_training
from headwater.strategies.private_round import (
    private_cohort,
    private_event,
    private_start,
    private_sum,
    require_fine_units,
)
from headwater.strategies.private_sum import NoisedSum, independent
from headwater.strategies.private_turns import in_turn, not_in_turn, state_for_next
from headwater.strategies.rules import rule_for, rule_in_round
from headwater.strategies.seeding import round_seeds, seeds_only
from headwater.strategies.server_optimizers import Moments, optimizer_for
from headwater.strategies.shared_noise import SharedNoise
from headwater.strategies.strategy import RoundPlan, ServerState, Strategy

MAX_WEIGHT = 2**24
"""Examples beyond this count no more: a client's claim must not use up the accumulators' bits."""


Correlated: TypeAlias = Callable[[Randomness, float, int], tuple[Integers, int]]
"""Noise of (source, longest part of one owner in units, how many): int64, and σ of what was drawn for it."""


class FederatedStrategy(Strategy):
    """Rounds as the federation file describes them.

    Args:
        federation: the file.
        drawn: the clients it is given were drawn before: all of them are in the round.
    """

    def __init__(self, federation: Federation, *, drawn: bool = False) -> None:
        self.federation, self._drawn = federation, drawn
        strategy = federation.strategy
        noisy = any(t.noise != "none" for t in federation.trainings.values())
        several = noisy and len(federation.trainings) > 1  # of one method all weigh the same
        self.weighs_noise = several and strategy.weighs_methods()
        self._root = Key.root(federation.federation.seed)
        self._transforms = merge_transforms(federation)
        self._optimizer = optimizer_for(strategy)

    def init(self, state: AdapterState) -> ServerState:
        """Round 0: the optimiser's moments as they begin, and coefficients of seeds that are zero.

        Raises:
            ConfigError: a method whose updates cannot be as short as its ``max_bytes_up``, or a rule that
                would keep more updates than it may.
        """
        self._require_budgets(state.spec)
        self._require_room(state.spec, self.federation.cohort.min_clients)
        moments = self._optimizer.init(state.spec)
        seeded_state = None
        seeds = round_seeds(self.federation, 1)
        if seeds is not None and seeds_only(self.federation):
            directions = directions_of(seeds, self._root, state.spec.numel)
            fresh = any(t.fresh_seeds for t in self.federation.trainings.values())
            sums = np.zeros(0 if fresh else seeds.count, np.int64)
            seeded_state = SeededState(state, directions, seeds.unit_bits + FINE_BITS, sums)
        seed_slopes = None
        if seeds is not None and pro_training(self.federation) is not None:
            seed_slopes = SeedSlopes(np.zeros(seeds.count), np.zeros(seeds.count, np.int64))
        privacy = private_start(self.federation)
        require_fine_units(self.federation, privacy, state.spec.numel)
        return ServerState(
            0,
            state,
            moments.first,
            seeded_state=seeded_state,
            seed_slopes=seed_slopes,
            second_moment=moments.second,
            control=AdapterState.zeros(state.spec) if self.federation.strategy.control_variates else None,
            shift=AdapterState.zeros(state.spec) if self.federation.codec.up.shifts else None,
            privacy=privacy,
        )

    def plan(
        self,
        server: ServerState,
        profiles: Mapping[str, ClientProfile],
        *,
        key: Key,
        method_names: Mapping[str, str] | None = None,
        population: Mapping[str, int] | None = None,
    ) -> RoundPlan:
        """All clients with training examples; in a synchronous round ``cohort.clients_per_round`` of them."""
        federation, number = self.federation, server.round + 1
        names = sorted(name for name, profile in profiles.items() if profile.train_examples > 0)
        if not names:
            raise FederationStopped(
                f"round {number}",
                expected="at least one client with training examples",
                got=f"{len(profiles)} clients, none with any",
                hint="Check the clients' data and their validation_fraction.",
            )
        method_names = completed_names(federation, names, method_names)  # quotas are of all clients
        if waiting := not_in_turn(federation, server, names):  # also of a round that was drawn before
            names = [name for name in names if name not in waiting]
        if not self._drawn:
            names = self._cohort(server, names, key)
        methods = assign(federation, {name: profiles[name] for name in names}, method_names)
        spec, layers_key = server.state.spec, key.child("layers", number)
        self._require_room(spec, len(names))
        tensors = trained_tensors(spec, {n: a.method for n, a in methods.items()}, key=layers_key)
        if federation.strategy.alternates:
            tensors = {name: one_factor(spec, mine, number) for name, mine in tensors.items()}
        if federation.own_part != "nothing":
            shared = shared_tensors(spec, federation.own_part)
            tensors = {name: _both(mine, shared) for name, mine in tensors.items()}
        seeds = round_seeds(federation, number)
        if seeds is not None and server.seed_slopes is not None:
            seeds = replace(seeds, odds=odds_of(server.seed_slopes.means()))
        tasks: dict[str, ClientPlan] = {}
        made: dict[tuple[Any, ...], ClientPlan] = {}  # clients of one kind share theirs: there may be 10⁵
        for name, assigned in methods.items():
            reads = profiles[name].reads
            room = self._room_of_link(server, name)
            kind = (assigned.name, assigned.method.training, tensors[name], reads, room)
            if kind not in made:
                made[kind] = self._task(assigned, number, spec, seeds, tensors[name], reads, room)
            tasks[name] = made[kind]
        control = self._control(server, tasks, profiles, population)
        shift = None
        if server.shift is not None:
            counts = population or {name: profile.train_examples for name, profile in profiles.items()}
            shift = ShiftPlan(server.shift, sum(count > 0 for count in counts.values()))
        return RoundPlan(number, tasks, self._merge(server, tasks, profiles), control, shift)

    def _cohort(self, server: ServerState, names: list[str], key: Key) -> list[str]:
        """Who is in the round, of the sorted names of those who may be asked."""
        federation, number = self.federation, server.round + 1
        if (state := server.privacy) is not None:
            randomness = self._randomness("cohort", number)
            if state.sequence is not None:
                return in_turn(federation, state, names, randomness)
            return private_cohort(federation, names, randomness)
        if not federation.schedule.has_rounds:  # a buffered version takes whoever is first
            return names
        per_round, always = federation.cohort.clients_per_round, federation.strategy.always
        return _sample(names, per_round, key.child("cohort", number), always)

    def _control(
        self,
        server: ServerState,
        tasks: Mapping[str, ClientPlan],
        profiles: Mapping[str, ClientProfile],
        population: Mapping[str, int] | None,
    ) -> ControlPlan | None:
        """What a round with control variates counts with."""
        if server.control is None:
            return None
        examples = {name: profile.train_examples for name, profile in profiles.items()}
        rates: dict[str, float] = {}
        for tensor in server.state.spec:
            rate = self.federation.training.descent_rate(tensor.role)
            assert rate is not None, "require_consistent asks for it"
            rates[tensor.name] = rate * next(iter(tasks.values())).learning_rate_factor
        steps = {name: plan.training.steps_of(examples[name]) or 0 for name, plan in tasks.items()}
        weights = sum(self._weight(count) for count in (population or examples).values() if count > 0)
        return ControlPlan(server.control, rates, steps, weights)

    def _room_of_link(self, server: ServerState, client: str) -> int | None:
        """The bytes that a client's link carries in ``cohort.upload_s``; None if nobody knows or asks."""
        seconds = self.federation.cohort.upload_s
        return None if seconds is None else link_bytes(server.links.get(client, ()), seconds)

    def _counted(self, profile: ClientProfile) -> int:
        """What a client weighs by, where not all weigh alike."""
        by_targets = self.federation.strategy.weighting == "targets"
        return profile.train_targets if by_targets else profile.train_examples

    def _weight(self, examples: int) -> int:
        """Of a client's update."""
        return weight_of(self.federation, examples)

    def _task(
        self,
        assigned: Assigned,
        number: int,
        spec: StateSpec,
        seeds: SeedPlan | None,
        tensors: tuple[str, ...] | None,
        reads: tuple[str, ...],
        room: int | None = None,
    ) -> ClientPlan:
        """What a client with this method, codecs that it knows, and room on its link, is asked."""
        federation, method = self.federation, assigned.method
        strategy, training = federation.strategy, method.training
        fisher = FisherPlan(strategy.examples, strategy.cap) if isinstance(strategy, FisherStrategy) else None
        mine = training.seed_range(number)
        seeds = None if mine is None else seeds
        codec = federation.codec.up.for_round(self._root.child("round", number, "places").digest[:16].hex())
        trained = spec if tensors is None else spec.only(tensors)
        codec = codec_of_client(
            codec, trained, reads, "codec.up.budget_bytes, of a client of an older version"
        )
        if method.max_bytes_up is not None:
            codec = codec_within(
                codec,
                trained,
                method.max_bytes_up,
                f"methods.{assigned.name}",
                seeds=None
                if mine is None or seeds is None
                else replace(seeds, entries=min(seeds.entries, mine.entries)),
                fisher=fisher is not None,
            )
        if room is not None and mine is None:
            codec = codec_for_link(codec, trained, room)
        return ClientPlan(
            training=training,
            codec=codec,
            learning_rate_factor=learning_rate_factor(training, number, federation.federation.rounds),
            clip_l2=None if federation.privacy.adaptive else federation.privacy.clip_l2,
            fisher=fisher,
            seeds=seeds,
            tensors=tensors,
            rank=method.rank,
            method=assigned.name if federation.methods else "",
            control_bytes=spec.nbytes if strategy.control_variates else 0,
        )

    def _require_budgets(self, spec: StateSpec) -> None:
        """Before anybody works: who uses which method may be known late, and by the devices' word."""
        seeds = round_seeds(self.federation, 1)
        for name, method in self.federation.methods.items():
            if not method.training.splits_layers:  # which layers it has is dealt in each round
                tensors = None if method.last_layers is None else last_layers(spec, method.last_layers)
                for reads in ((), readable(), (*readable(), DENSITY_OVER)):
                    self._task(Assigned(name, method), 1, spec, seeds, tensors, reads)

    def kept_bytes(self, spec: StateSpec, clients: int, *, spooled: bool = False) -> int | None:
        """Memory of a round's updates until they are merged, at most; None where no update is kept.

        Args:
            spec: of the adapter.
            clients: that are in the federation.
            spooled: whether a second pass reads the updates from disk.
        """
        rule = rule_for(self.federation.strategy)
        kept = rule.kept_bytes(spec, self._most_in_a_round(clients))
        return None if kept == 0 or (spooled and rule.passes > 1) else kept

    def _require_room(self, spec: StateSpec, clients: int) -> None:
        """Before anybody works: whether the rule may keep the updates of so many clients."""
        rule_for(self.federation.strategy).require_room(spec, self._most_in_a_round(clients))

    def _most_in_a_round(self, clients: int) -> int:
        """Of so many clients, how many updates are merged at once: a full buffer, or all that are asked."""
        per_round = self.federation.schedule.buffer or self.federation.cohort.clients_per_round
        return clients if per_round is None else min(clients, per_round)

    def _merge(
        self, server: ServerState, tasks: Mapping[str, ClientPlan], profiles: Mapping[str, ClientProfile]
    ) -> MergePlan:
        """How the updates of these clients are added."""
        strategy = self.federation.strategy
        counts = {n: self._counted(profiles[n]) for n in tasks}
        weights = {n: self._weight(count) for n, count in counts.items()}
        spec = server.state.spec
        seeds = next((plan.seeds for plan in tasks.values() if plan.seeds is not None), None)
        return MergePlan(
            spec,
            weights,
            strategy.value_bound,
            seeds=seeds,
            directions=directions_of(seeds, self._root, spec.numel) if seeds else None,
            tensors={name: plan.tensors for name, plan in tasks.items() if plan.tensors is not None},
            ranks={name: plan.rank for name, plan in tasks.items() if plan.rank is not None},
            noise=server.noise if self.weighs_noise else None,
            groups={name: plan.method for name, plan in tasks.items()} if self.weighs_noise else {},
            claimed=frozenset(p.method for p in tasks.values() if p.training.noise == "reported"),
            use=seeds is not None and server.seed_slopes is not None,
            norm_bound=strategy.norm_bound,
            sum_bits=MASKED_BITS if self.federation.privacy.masks else SUM_BITS,
            private=private_sum(self.federation, state_for_next(self.federation, server)),
        )

    def aggregator(
        self, plan: RoundPlan, base: AdapterState, correlated: Correlated | None = None
    ) -> Aggregator[Any]:
        """The rule of ``[strategy]``; with noise the clipped sum, which draws it when the round is merged.

        Args:
            plan: of the round.
            base: what its clients start from.
            correlated: draws noise that remembers earlier rounds', where the file has such.
        """
        if plan.merge.private is not None and plan.merge.private.shares is not None:
            return SharedNoise(lambda client: self._randomness(f"share of {client}", plan.round))
        if plan.merge.private is not None:
            return NoisedSum(partial(self._noise, plan.round, correlated))
        return rule_in_round(self.federation.strategy, base, self._root.child("merge", plan.round))

    def update(self, server: ServerState, merged: Merged) -> ServerState:
        """The merge transforms, then one step of the server optimiser.

        Raises:
            HeadwaterError: values were merged in a federation whose clients send coefficients only.
        """
        for transform in self._transforms:
            server, merged = transform.apply(server, merged)
        if server.seeded_state is not None:
            seeds = round_seeds(self.federation, server.round + 1)
            assert seeds is not None, "coefficients of what?"
            assert merged.coefficients is not None, "ScaleCoefficients refuses values"
            seeded_state = server.seeded_state.plus(seeds.first, merged.coefficients)
            # what does not travel any more need not be kept: decomfl's seeds are new ones in every round
            kept = seeded_state if len(seeded_state.sums) <= MAX_SUMS else None
            return replace(
                server, round=server.round + 1, state=seeded_state.state(), momentum=None, seeded_state=kept
            )
        moments = Moments(server.momentum, server.second_moment)
        state, moments = self._optimizer.step(server.state, moments, merged.delta)
        return replace(
            server,
            round=server.round + 1,
            state=state,
            momentum=moments.first,
            second_moment=moments.second,
        )

    def not_in_turn(self, server: ServerState, names: Iterable[str]) -> dict[str, str]:
        """Those whom the round after ``server`` may not ask, whoever is there, each with the reason."""
        return not_in_turn(self.federation, server, names)

    def release(self, server: ServerState, release: str) -> SumReleased | SharesReleased | SequenceReleased:
        """The event of the round after ``server``, under this id."""
        return private_event(self.federation, server, release)

    def _noise(
        self,
        number: int,
        correlated: Correlated | None,
        what: str,
        multiplier: float,
        longest: float,
        size: int,
    ) -> tuple[Integers, int]:
        """Of a round's sum, or of how many updates were short.

        Raises:
            HeadwaterError: correlated noise without its memory.
        """
        randomness = self._randomness(what, number)
        if self.federation.privacy.correlated:
            if correlated is None:
                raise HeadwaterError(
                    f"round {number}", expected="the memory of its noise", got="none",
                    hint="This is a fault of the server: please report it with the federation file.",
                )  # fmt: skip
            return correlated(randomness, longest, size)
        return independent(randomness)(what, multiplier, longest, size)

    def _randomness(self, what: str, number: int) -> Randomness:
        """Of a round's noise or cohort."""
        if self.federation.privacy.noise == "reproducible":
            return ReproducibleRandomness(self._root.child("privacy", what, number))
        return SystemRandomness()

    def rolled_back(self, server: ServerState, state: AdapterState) -> ServerState:
        """The server after it went back to another version's values: dense, and its optimiser starts anew."""
        moments = self._optimizer.init(state.spec)
        return replace(
            server,
            state=state,
            momentum=moments.first,
            second_moment=moments.second,
            seeded_state=None,
            residual=None,
        )

    def begun_again(self, server: ServerState, state: AdapterState, leaving: str) -> ServerState:
        """The server with these values and nothing else of its rounds, since a client has left.

        What the optimiser, the weighing of methods and the way down had learned holds something of it.
        """
        links = {client: speeds for client, speeds in server.links.items() if client != leaving}
        anew = replace(self.init(state), round=server.round, seeded_state=None, links=links)
        if self.federation.privacy.correlated:  # the noise, and the turns that it is for, go on
            anew = replace(anew, privacy=server.privacy)
        return anew


def weight_of(federation: Federation, examples: int) -> int:
    """Of the update of a client with so many."""
    return 1 if federation.strategy.weighting == "equal" else min(examples, MAX_WEIGHT)


def _both(some: tuple[str, ...] | None, others: tuple[str, ...]) -> tuple[str, ...]:
    """The names in both; None is all."""
    return others if some is None else tuple(name for name in some if name in others)


def _sample(names: Sequence[str], size: int | None, key: Key, always: Collection[str] = ()) -> list[str]:
    """``size`` of the sorted ``names`` without replacement, sorted; all of them if there are no more.

    Those of ``always`` are among them.
    """
    if size is None or size >= len(names):
        return list(names)
    sure = [name for name in names if name in always]
    others = [name for name in names if name not in always] if sure else names
    chosen = key.numpy().choice(len(others), size=max(0, size - len(sure)), replace=False)
    return sorted([*sure, *(others[i] for i in chosen.tolist())])
