"""Both coordinators under thousands of seeded sequences of drops, delays, duplicates and crashes."""

from __future__ import annotations

import random

import pytest

from headwater.protocol.buffered import BufferedCoordinator, BufferedRules
from headwater.protocol.coordinator import Coordinator, RoundRules
from tests.protocol.world import Trouble, World

NAMES = tuple(f"edge-{i}" for i in range(8))
SEEDS = 1500


def synchronous(seed, clients, *, crash_at=None, trouble=None, **rules):
    def machine(done):
        return Coordinator(RoundRules(3, **rules), done=done)

    return World(seed, machine, clients, crash_at=crash_at, trouble=trouble or Trouble(), **rules)


def buffered(seed, clients, *, crash_at=None, trouble=None, **rules):
    def machine(done):
        return BufferedCoordinator(BufferedRules(6, **rules), done=done)

    return World(seed, machine, clients, 6, crash_at=crash_at, trouble=trouble or Trouble(), **rules)


def any_trouble(draw, clients, least):
    """Anything may go wrong, but ``least`` clients answer in the end."""
    spare = draw.sample(clients, draw.randint(0, len(clients) - least))
    cut = draw.randint(0, len(spare))
    return Trouble(
        fail=draw.choice((0, 0.2, 0.6)),
        garbage=draw.choice((0, 0.2)),
        duplicate=draw.choice((0, 0.5)),
        noise=draw.choice((0, 0.5)),
        crash=draw.choice((0, 0.03, 0.2)),
        slowest_s=draw.choice((0, 8, 60)),
        dead=frozenset(spare[:cut]),
        revoked=frozenset(spare[cut:]),
    )


@pytest.mark.parametrize("part", range(4))
def test_persistent_rounds_keep_the_laws_and_never_stall(part):
    for seed in range(part, SEEDS, 4):
        draw = random.Random(seed)
        clients = NAMES[: draw.randint(1, 8)]
        least = draw.randint(1, len(clients))
        trouble = any_trouble(draw, clients, least)
        target = draw.choice((None, draw.randint(least, 8)))
        deadline_s = draw.choice((None, 7.0, 30.0))
        if deadline_s is None and trouble.dead:  # else only the deadline ends a round with silent clients
            deadline_s = 10.0
        world = synchronous(
            seed,
            clients,
            trouble=trouble,
            min_clients=least,
            target=target,
            deadline_s=deadline_s,
            retry_s=5.0,
        )
        assert len(world.run()) == 3


@pytest.mark.parametrize("part", range(2))
def test_a_simulation_closes_or_halts(part):
    halted = 0
    for seed in range(part, SEEDS // 3, 2):
        draw = random.Random(seed)
        clients = NAMES[: draw.randint(1, 8)]
        trouble = any_trouble(draw, clients, 1)
        deadline_s = 10.0 if trouble.dead else draw.choice((None, 7.0))
        least = draw.randint(1, len(clients))
        world = synchronous(
            seed, clients, trouble=trouble, min_clients=least, deadline_s=deadline_s, retry_s=None
        )
        world.run()
        halted += world.halted
        assert world.halted or world.done == 3
    assert 0 < halted < SEEDS // 6


@pytest.mark.parametrize("part", range(4))
def test_buffered_versions_keep_the_laws_and_never_stall(part):
    stale = 0
    for seed in range(part, SEEDS, 4):
        draw = random.Random(seed)
        clients = NAMES[: draw.randint(1, 8)]
        least = draw.randint(1, len(clients))
        buffer = draw.randint(least, 8)
        trouble = any_trouble(draw, clients, least)
        deadline_s = 20.0 if trouble.dead else draw.choice((None, 7.0, 30.0))
        world = buffered(
            seed,
            clients,
            trouble=trouble,
            min_clients=least,
            buffer=buffer,
            max_staleness=draw.choice((0, 1, 20)),
            deadline_s=deadline_s,
            retry_s=5.0,
            at_once=draw.choice((None, draw.randint(1, 8))),
        )
        merged = world.run()
        assert len(merged) == 6
        stale += sum(version < number for number, m in enumerate(merged, 1) for _, version in m)
    assert stale > 100


@pytest.mark.parametrize("make", [synchronous, buffered])
def test_a_crash_at_every_write_loses_and_repeats_nothing(make):
    """A fixed cohort: whatever is lost on the way, every round has everyone's update in it."""
    clients = NAMES[:3]
    more = {"buffer": 3} if make is buffered else {}
    trouble = Trouble(fail=0.2, duplicate=0.3, slowest_s=4)
    undisturbed = make(7, clients, min_clients=3, retry_s=5.0, trouble=trouble, **more)
    expected = undisturbed.run()
    assert expected == [tuple((c, n) for c in clients) for n in range(1, undisturbed.rounds + 1)]
    for write in range(1, undisturbed.writes + 1):
        world = make(7, clients, min_clients=3, retry_s=5.0, trouble=trouble, crash_at=write, **more)
        assert world.run() == expected
        assert world.crashes == 1
