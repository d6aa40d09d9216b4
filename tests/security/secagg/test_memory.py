"""What a client tells of one round, over any attempts and in any order: one vector, one list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from headwater.errors import EmptyRound, StorageError, UpdateRejected
from headwater.security.secagg.bounds import Promise
from headwater.security.secagg.group import SumRound, later_attempt, task_of
from headwater.security.secagg.memory import ProcessMemory, Told
from headwater.security.secagg.server import MaskingServer
from tests.security.secagg.play import Play, plain_sum

PROMISE = Promise(0.34, 0.1)


class Attempt(Play):
    """One attempt of several at a round: the clients' memories are shared."""

    def __init__(self, of: Attempt | None = None, **changes: object) -> None:
        self._of, self._changes = of, changes
        super().__init__(6, PROMISE)

    def client(self, name: str):
        if self._of is not None:
            self.memories = self._of.memories
        last = b"" if self._of is None else self._of.round.attempt
        if not hasattr(self, "_attempt"):
            self._attempt: SumRound = replace(self.round, attempt=later_attempt(last), **self._changes)  # type: ignore[arg-type]
            self.round, self.server = self._attempt, MaskingServer(self._attempt, self.enrolled)
        return super().client(name)

    def begun(self) -> Attempt:
        """Keys and shares of all."""
        self.keys()
        self.shares()
        return self


def test_of_two_attempts_at_once_only_the_later_counts() -> None:
    first = Attempt()
    second = Attempt(first)
    values = first.some_values()
    first.begun().vectors(values)
    second.begun().vectors(values)
    with pytest.raises(UpdateRejected, match="last attempt that it has sent its vector in"):
        first.clients["c000"].sign_list(first.server.survivors)
    assert second.clients["c001"].sign_list(second.server.survivors)


def test_no_client_goes_back_to_an_earlier_attempt() -> None:
    """Else two lists, each signed by those that the other one also has, would differ by two clients."""
    first = Attempt()
    second = Attempt(first)
    values = first.some_values()
    second.begun().vectors(values)
    first.begun()
    with pytest.raises(UpdateRejected, match="an attempt after the last one"):
        first.clients["c000"].mask(first.deliveries["c000"], values["c000"])


def test_another_vector_of_the_round_never_leaves() -> None:
    first = Attempt()
    values = first.some_values(1)
    first.begun().vectors(values)
    second = Attempt(first).begun()
    with pytest.raises(UpdateRejected, match="the vector that it has sent in this round"):
        second.clients["c000"].mask(second.deliveries["c000"], second.some_values(2)["c000"])


def test_the_same_list_may_be_summed_again_under_new_keys() -> None:
    first = Attempt()
    values = first.some_values()
    first.begun().vectors(values, but=("c005",))
    first.signatures()  # and the server dies
    again = Attempt(first, exactly=tuple(first.survivors))
    again.begun().vectors(values, but=("c005",))
    again.signatures()
    found = again.reveals()
    assert found.names == tuple(first.survivors)
    assert np.array_equal(found.values[0], plain_sum(values, first.survivors)[0])
    keys = [{a.mask_key for a in play.group.adverts} for play in (first, again)]
    assert not keys[0] & keys[1]


def test_another_list_than_the_one_that_was_signed_is_refused() -> None:
    first = Attempt()
    values = first.some_values()
    first.begun().vectors(values, but=("c005",))
    first.signatures()
    with pytest.raises(UpdateRejected, match="signed the survivors of"):
        Attempt(first)
    with pytest.raises(UpdateRejected, match="signed the survivors of"):
        Attempt(first, exactly=first.names)


def test_fewer_than_the_stated_survivors_are_no_sum() -> None:
    first = Attempt()
    values = first.some_values()
    first.begun().vectors(values)
    again = Attempt(first, exactly=first.names).begun()
    with pytest.raises(EmptyRound, match="all survivors of the list"):
        again.vectors(values, but=("c003",))
    with pytest.raises(UpdateRejected, match="the survivors that the round says"):
        again.clients["c000"].sign_list(again.server.survivors)


def test_clients_that_were_asked_something_else_are_no_neighbours() -> None:
    """A server that has the others train to nothing would see one update alone."""
    play = Attempt(task=task_of(b"a" * 32, [b"p" * 32]))
    other = replace(play.round, task=task_of(b"b" * 32, [b"p" * 32]))
    play.round, kept = other, play.round
    play.clients["c002"] = Play.client(play, "c002")
    play.round = kept
    for name in play.names:
        advert = play.clients[name].advertise()
        play.server._adverts[advert.index] = advert  # a server that does not look
    group = play.server.close_adverts()
    with pytest.raises(UpdateRejected, match="keys of c002"):
        play.clients["c000"].share(group)
    with pytest.raises(UpdateRejected, match="keys of c000"):
        play.clients["c002"].share(group)


class Broken(ProcessMemory):
    """Of a full disk."""

    def note(self, run: str, round: int, told: Told) -> None:
        raise StorageError("memory", expected="room", got="none")


@pytest.mark.parametrize("step", ["mask", "sign_list"])
def test_what_cannot_be_kept_is_not_told(step: str) -> None:
    play = Attempt()
    values: Mapping[str, list[np.ndarray]] = play.some_values()
    play.begun()
    client = play.clients["c000"]
    if step == "mask":
        client._memory = Broken()
        with pytest.raises(StorageError):
            client.mask(play.deliveries["c000"], values["c000"])
    else:
        play.vectors(values)
        broken = Broken()
        broken._told = play.memories["c000"]._told
        client._memory = broken
        with pytest.raises(StorageError):
            client.sign_list(play.server.survivors)
    assert "_seed" not in client.__dict__
