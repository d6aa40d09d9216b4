"""Turns: with correlated noise an owner is asked no more often than is priced, whoever answers.

Formal guarantee: between two rounds that ask one owner there are ``min_separation`` − 1 others at least, and
``max_participations`` ask it at most, over restarts, rollbacks and resumes: who was asked is in the
checkpoint, and of a round that ended without one, in its release. Asked is what counts: were it who answered,
an owner's failure would decide whom a later round asks, and its data would move others' parts of a sum.

Within the turns a round takes whom it likes of those who are there: chance hides nobody here. It takes those
who were asked least, so that while all are there every round of the file has enough owners.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from headwater.config.federation import Federation
from headwater.privacy.correlated.kinds import best
from headwater.privacy.correlated.mechanism import Participation
from headwater.privacy.noise import Randomness
from headwater.strategies.strategy import NoiseSequence, PrivacyState, ServerState


def sequence_from(federation: Federation, first: int) -> NoiseSequence | None:
    """The noise of the rounds from ``first`` on; None where each round has its own.

    Args:
        federation: the file.
        first: the last round of the file is the least that it reaches.
    """
    privacy = federation.privacy
    if not privacy.correlated:
        return None
    rounds = max(federation.federation.rounds - first + 1, 1)
    who = Participation(rounds, min(privacy.min_separation, rounds), privacy.max_participations)
    return NoiseSequence(first, best(privacy.mechanism, who), who)


def not_in_turn(federation: Federation, server: ServerState, names: Iterable[str]) -> dict[str, str]:
    """Whom of ``names`` the round after ``server`` may not ask: why, and from which round on it may."""
    state, number = server.privacy, server.round + 1
    if state is None or state.sequence is None:
        return {}
    apart, most = federation.privacy.min_separation, federation.privacy.max_participations
    found = {}
    for name in names:
        last, times = state.asked.get(name, (number - apart, 0))
        if most is not None and times >= most:
            found[name] = f"was asked in {times} rounds, and privacy.max_participations is {most}"
        elif number - last < apart:
            found[name] = f"was asked in round {last}, and may be again from round {last + apart} on"
    return found


def in_turn(
    federation: Federation, state: PrivacyState, names: Sequence[str], randomness: Randomness
) -> list[str]:
    """Whom a round asks of the sorted ``names`` of those who may be: who was asked least, then by chance.

    Returns:
        ``cohort.clients_per_round`` of them, sorted; all of fewer.
    """
    words = dict(zip(names, randomness.words(len(names)).tolist(), strict=True))
    never = (0, 0)
    order = sorted(names, key=lambda name: (state.asked.get(name, never)[1], words[name]))
    return sorted(order[: federation.cohort.clients_per_round])


def after_round(federation: Federation, server: ServerState, asked: Collection[str]) -> PrivacyState | None:
    """What is known after the round that follows ``server`` has asked these owners."""
    state, number = state_for_next(federation, server), server.round + 1
    if state is None or state.sequence is None:
        return state
    before: Mapping[str, tuple[int, int]] = state.asked
    now = {name: (number, before.get(name, (0, 0))[1] + 1) for name in asked}
    return replace(state, asked={**before, **now})


def state_for_next(federation: Federation, server: ServerState) -> PrivacyState | None:
    """Bound and noise of the round after ``server``: after a sequence's end the first of another.

    Rounds that the organiser adds to a run are of another: they are paid for by themselves.
    """
    state, number = server.privacy, server.round + 1
    if state is None or state.sequence is None or state.sequence.has(number):
        return state
    return replace(state, sequence=sequence_from(federation, number))
