"""The laws of a rule that is summed under masks: inherit :class:`MaskedSumLaws`; say which rule, and of what.

Each example plays the protocol through with real keys and every message as bytes. Clients stop at any step,
as many as the federation states and more. An oracle of its own says from who stopped where whether there is a
sum; there is one then and only then, and it merges to the very bits of a plain round of its clients.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from headwater.compression.codec import Codec
from headwater.errors import ConfigError, EmptyRound
from headwater.merging.aggregator import Aggregator
from headwater.merging.mean import MeanAggregator
from headwater.merging.plan import MASKED_BITS, MergePlan, Update
from headwater.security.secagg.bounds import Promise, choose
from headwater.security.secagg.ring import Integers
from headwater.security.secagg.server import MaskedSum
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from tests.laws.aggregator_laws import BOUND, SEEDS, SPEC, bits, directions, update_of
from tests.security.secagg.play import PHASES, Play

SPECIAL = np.array([0.0, -0.0, 0.25, -0.25, 0.5, 1.0, -1.0, BOUND, -BOUND, 1e-40], np.float32)
# of so many clients, in groups of whom all are neighbours and in others
GROUPS = [
    (count, Promise(dropouts, colluding))
    for count in (3, 4, 5, 7, 10, 12)
    for dropouts, colluding in ((0.0, 0.0), (0.2, 0.0), (0.2, 0.1), (0.34, 0.0), (0.4, 0.1))
    if count - int(dropouts * count) >= Promise(dropouts, colluding).fewest(count)
]
STOPS = (None, *PHASES, *["vector"] * 3, *[None] * 15)
LAW = settings(
    max_examples=24,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


class MaskedSumLaws:
    """Give ``rule``; for other updates than dense ones also ``codec`` or ``seeds``."""

    rule: ClassVar[Aggregator[Any]]
    codec: ClassVar[Codec | None] = None
    """What an update has been through."""
    seeds: ClassVar[bool] = False
    """Whether updates are coefficients of seeds."""

    @given(
        group=st.sampled_from(GROUPS),
        weights=st.lists(st.sampled_from([1, 2, 3, 1000, 2**20]), min_size=12, max_size=12),
        stops=st.lists(st.sampled_from(STOPS), min_size=12, max_size=12),
        seed=st.integers(0, 2**16),
    )
    @LAW
    def test_the_masked_result_has_the_bits_of_the_plain_one(
        self, group: tuple[int, Promise], weights: list[int], stops: list[str | None], seed: int
    ) -> None:
        count, promise = group
        names = [f"c{i:03d}" for i in range(count)]
        plan = MergePlan(SPEC, dict(zip(names, weights, strict=False)), BOUND, sum_bits=MASKED_BITS)
        if self.seeds:
            plan = dataclasses.replace(plan, seeds=SEEDS, directions=directions())
        draw = np.random.default_rng(seed)
        updates = {name: self._update(name, draw) for name in names}
        vectors = {
            name: self.rule.to_sums(self._folded(plan.part([name]), [update]))
            for name, update in updates.items()
        }
        gone = {name: phase for name, phase in zip(names, stops, strict=False) if phase is not None}
        play = Play(count, promise, self.rule.sum_layout(plan))
        found = played(play, vectors, gone)
        event("a sum" if isinstance(found, MaskedSum) else "none")
        assert isinstance(found, MaskedSum) is there_is_a_sum(play, gone)
        if not isinstance(found, MaskedSum):
            assert found.startswith(("masked sum", "privacy.masks"))
            return
        before = PHASES[: PHASES.index("signature")]
        assert found.names == tuple(name for name in names if gone.get(name) not in before)
        acc = self.rule.from_sums(plan, found.names, found.values)
        self.rule.require_sound(acc)
        plain = self._folded(plan, [updates[name] for name in found.names])
        assert bits(self.rule.finalize(acc)) == bits(self.rule.finalize(plain))
        if not isinstance(self.rule, MeanAggregator):  # which notes how an update came
            assert bits(acc) == bits(plain)

    def _update(self, name: str, draw: np.random.Generator) -> Update:
        if self.seeds:
            steps = [
                (int(draw.integers(SEEDS.count)), int(draw.integers(-32767, 32768)))
                for _ in range(draw.integers(SEEDS.entries + 1))
            ]
            return Update(name, 1, SeedCoefficients.of(SEEDS, steps), examples=1)
        values = np.where(
            draw.random(SPEC.numel) < 0.5,
            draw.choice(SPECIAL, SPEC.numel),
            draw.uniform(-BOUND, BOUND, SPEC.numel).astype(np.float32),
        )
        update = update_of(SPEC, name, values, draw.random(SPEC.numel))
        if self.codec is None:
            return update
        small = AdapterState.from_vector(SPEC, torch.from_numpy(values / np.float32(8)))  # what leaves room
        payload = self.codec.encode(small, key=Key.root(int(draw.integers(99))))
        return dataclasses.replace(update, delta=self.codec.decode(payload, SPEC))

    def _folded(self, plan: MergePlan, updates: list[Update]) -> Any:
        acc = self.rule.init(plan)
        for update in updates:
            acc = self.rule.add(acc, update)
        return acc


def played(play: Play, vectors: dict[str, list[Integers]], gone: dict[str, str]) -> MaskedSum | str:
    """The sum, or who says that there is none."""
    try:
        return play.whole(vectors, gone)
    except EmptyRound as error:
        return error.who


def there_is_a_sum(play: Play, gone: dict[str, str]) -> bool:
    """Whether the clients that stopped leave a sum, by counting them."""
    asked, promise = len(play.names), play.round.promise
    members = [name for name in play.names if gone.get(name) != "keys"]
    if len(members) < asked - int(promise.dropouts * asked):
        return False
    try:
        bounds = choose(len(members), promise)
    except ConfigError:
        return False
    shared = [name for name in members if gone.get(name) != "shares"]
    left = [name for name in shared if gone.get(name) != "vector"]
    signed = [name for name in left if gone.get(name) != "signature"]
    revealed = [name for name in signed if gone.get(name) != "reveal"]
    colluding, dropped = int(promise.colluding * len(members)), int(promise.dropouts * len(members))
    quorum = (len(members) + colluding) // 2 + 1
    if len(left) < max(quorum, colluding + 2, len(members) - dropped) or len(signed) < quorum:
        return False
    ring, half = [members[member] for member in play.server.group.ring], bounds.neighbours // 2
    for some in () if bounds.complete else (shared, left):
        doubled = [name in some for name in ring + ring]
        if any(sum(doubled[at : at + half]) < bounds.window for at in range(len(ring))):
            return False
    helpers = {
        name: sum(members[other] in revealed for other in play.server.group.neighbours(members.index(name)))
        for name in shared
    }
    return min(helpers.values()) >= bounds.threshold
