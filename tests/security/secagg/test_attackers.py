"""What a lying server, and clients that help it, cannot get: each try ends the sum by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.errors import DecodeError, EmptyRound, HeadwaterError, UpdateRejected
from headwater.security.secagg.bounds import GroupBounds, Promise
from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import Advert, Group
from headwater.security.secagg.memory import ProcessMemory
from headwater.security.secagg.messages import Delivery, Reveal
from headwater.security.secagg.shamir import join
from tests.security.secagg.play import Play, enrolled_key, plain_sum

PROMISE = Promise(0.4, 0.1)  # of ten, all are neighbours


def after_vectors(count: int = 10, promise: Promise = PROMISE, but: tuple[str, ...] = ()) -> Play:
    """A play whose vectors are in, but for those of some."""
    play = Play(count, promise)
    play.keys()
    play.shares()
    play.vectors(play.some_values(), but)
    return play


def gone(client: MaskingClient) -> bool:
    """Whether a client has nothing left that could be told."""
    return not client.__dict__.keys() & {"_seal", "_mask", "_seed"} and not client._seed_shares


# --- the list of participants ---------------------------------------------------------------------


def test_keys_that_the_server_made_up_are_refused() -> None:
    play = Play(10, PROMISE)
    play.keys()
    forged = replace(play.group.adverts[3], mask_key=play.group.adverts[4].mask_key)
    group = Group((*play.group.adverts[:3], forged, *play.group.adverts[4:]), play.group.bounds)
    with pytest.raises(UpdateRejected, match="keys of c003"):
        play.clients["c000"].share(group)
    assert gone(play.clients["c000"])


def test_keys_of_another_round_or_attempt_are_refused() -> None:
    old, new = Play(10, PROMISE, round=1), Play(10, PROMISE, round=2)
    for play in (old, new):
        play.keys()
    group = Group((old.group.adverts[0], *new.group.adverts[1:]), new.group.bounds)
    with pytest.raises(UpdateRejected, match="signature of its enrolled key over this round"):
        new.clients["c005"].share(group)
    again = Play(10, PROMISE, round=2)
    again.round = replace(again.round, attempt=b"another attempt.")
    with pytest.raises(UpdateRejected):
        new.group.adverts[0].require_signed(again.round, again.enrolled)


def test_a_group_without_most_of_those_asked_is_refused() -> None:
    play = Play(10, PROMISE)
    play.keys()
    few = Group(play.group.adverts[:4], GroupBounds(4, 3, 2, 0))
    with pytest.raises(UpdateRejected, match="at least 6 members"):
        play.clients["c000"].share(few)


@pytest.mark.parametrize(
    "bounds", [GroupBounds(10, 9, 1, 0), GroupBounds(10, 2, 1, 1), GroupBounds(10, 11, 9, 0)]
)
def test_bounds_that_protect_nobody_are_refused(bounds: GroupBounds) -> None:
    play = Play(10, PROMISE)
    play.keys()
    with pytest.raises(UpdateRejected, match="bounds that hold"):
        play.clients["c000"].share(replace(play.group, bounds=bounds))


def test_a_client_shares_for_one_list_only() -> None:
    play = Play(10, PROMISE)
    play.keys()
    play.clients["c000"].share(play.group)
    smaller = Group(play.group.adverts[:9], GroupBounds(9, 8, 6, 0))
    with pytest.raises(UpdateRejected, match="asks each step once"):
        play.clients["c000"].share(smaller)
    assert gone(play.clients["c000"])


def test_shares_of_another_list_do_not_open() -> None:
    """A server that shows neighbours different lists splits nothing: shares are bound to the list."""
    play = Play(10, PROMISE)
    play.keys()
    smaller = Group(play.group.adverts[:9], GroupBounds(9, 8, 6, 0))
    rows = {}
    for number, name in enumerate(play.names):
        rows[number] = play.clients[name].share(smaller if number == 1 else play.group)
    shared = np.ones(10, np.bool_)
    with pytest.raises(UpdateRejected, match="shares of c001"):
        play.clients["c000"].mask(
            Delivery(shared, {n: rows[n][0] for n in range(1, 10)}), play.some_values()["c000"]
        )


def test_shares_may_not_be_held_back() -> None:
    play = Play(10, PROMISE)
    play.keys()
    play.shares()
    delivery = play.deliveries["c000"]
    sealed = dict(delivery.sealed)
    del sealed[4]
    with pytest.raises(UpdateRejected, match="shares of all neighbours"):
        play.clients["c000"].mask(replace(delivery, sealed=sealed), play.some_values()["c000"])


def test_a_client_is_not_left_alone_with_few() -> None:
    play = Play(10, PROMISE)
    play.keys()
    play.shares()
    shared = np.zeros(10, np.bool_)
    shared[:5] = True
    sealed = {n: row for n, row in play.deliveries["c000"].sealed.items() if n < 5}
    with pytest.raises(UpdateRejected, match="at least 6 of 10"):
        play.clients["c000"].mask(Delivery(shared, sealed), play.some_values()["c000"])


def test_a_client_is_not_left_with_fewer_neighbours_than_hide_it() -> None:
    """Enough members shared, but of its own neighbours too few: who holds that many shares has its mask."""
    play = Play(200, PROMISE)
    play.keys()
    client, group = play.clients["c000"], play.group
    client.share(group)
    neighbours, least = group.neighbours(0), group.bounds.threshold
    present = neighbours[: least - 1]
    shared = np.ones(200, np.bool_)
    shared[[n for n in neighbours if n not in present]] = False
    group.require_enough(shared, PROMISE)
    with pytest.raises(UpdateRejected, match=f"expected {least} neighbours"):
        client.mask(Delivery(shared, dict.fromkeys(present, b"")), play.some_values()["c000"])
    assert gone(client)


# --- the list of survivors ------------------------------------------------------------------------


def test_who_shared_nothing_is_no_survivor() -> None:
    """Else those who hide a vector would be fewer than they seem."""
    play = Play(10, PROMISE)
    play.keys()
    play.shares(but=("c009",))
    play.vectors(play.some_values())
    flags = play.server.survivors.copy()
    flags[9] = True
    with pytest.raises(UpdateRejected, match="survivors that shared"):
        play.clients["c000"].sign_list(flags)
    assert gone(play.clients["c000"])


def test_who_is_no_survivor_makes_up_no_quorum_and_a_client_keeps_no_secret() -> None:
    play = after_vectors(but=("c009",))
    play.signatures()
    client = play.clients["c000"]
    text = client._group.list_text(play.round, client._shared, client._survivors)
    with pytest.raises(UpdateRejected, match="another of c009"):
        client.reveal({**play.certificate, 9: enrolled_key("c009").sign(text)})
    other = play.clients["c001"]
    other.reveal(play.certificate)
    assert gone(client)
    assert gone(other)


def test_a_split_group_tells_nothing() -> None:
    """Half of the clients are shown one list of survivors, half another: neither finds a quorum."""
    play = after_vectors()
    lists = [play.server.survivors.copy(), play.server.survivors.copy()]
    lists[0][9] = lists[1][0] = False
    halves = play.names[:5], play.names[5:]
    signed = [
        {int(name[1:]): play.clients[name].sign_list(flags) for name in half}
        for flags, half in zip(lists, halves, strict=True)
    ]
    for name in play.names:
        given = signed[name not in halves[0]] | (signed[1] if name == "c000" else {})
        with pytest.raises(UpdateRejected, match=r"signatures of 6 members|over the list that it was shown"):
            play.clients[name].reveal(given)
        assert gone(play.clients[name])


def test_colluders_that_sign_both_lists_do_not_fill_a_quorum() -> None:
    """γ = 0.2 of 10: two sign whatever the server likes; with four honest ones on a side that is 6 of 7."""
    play = after_vectors(10, Promise(0.3, 0.2))
    lists = [play.server.survivors.copy(), play.server.survivors.copy()]
    lists[0][9], lists[1][0] = False, False
    sides = ("c000", "c001", "c002", "c003"), ("c006", "c007", "c008", "c009")
    for flags, side in zip(lists, sides, strict=True):
        text = play.group.list_text(play.round, play.server.shared, flags)
        signed = {int(name[1:]): play.clients[name].sign_list(flags) for name in side}
        signed |= {n: enrolled_key(play.names[n]).sign(text) for n in (4, 5)}
        for name in side:
            with pytest.raises(UpdateRejected, match="signatures of 7 members"):
                play.clients[name].reveal(signed)


def test_a_second_list_is_never_signed() -> None:
    play = after_vectors()
    play.clients["c000"].sign_list(play.server.survivors)
    other = play.server.survivors.copy()
    other[5] = False
    with pytest.raises(UpdateRejected, match="asks each step once"):
        play.clients["c000"].sign_list(other)
    with pytest.raises(UpdateRejected):  # and nothing is revealed after that
        play.clients["c000"].reveal({})


def test_never_both_shares_of_one_client() -> None:
    """Whatever is asked, a client gives one share of each neighbour, and nothing a second time."""
    play = after_vectors(but=("c007", "c008"))
    play.signatures()
    revealed = {name: play.clients[name].reveal(play.certificate) for name in play.signed}
    for reveal in revealed.values():
        assert not reveal.seeds.keys() & reveal.keys.keys()
        assert set(reveal.keys) == {7, 8}
    for name in play.signed:
        with pytest.raises(UpdateRejected, match="asks each step once"):
            play.clients[name].reveal(play.certificate)


def test_a_client_that_sent_but_was_said_to_have_dropped_stays_hidden() -> None:
    """Its pairwise masks come off, its own one does not."""
    play = after_vectors()
    victim = 4
    flags = play.server.survivors.copy()
    flags[victim] = False
    play.server.survivors[:] = flags
    for name in play.names:
        if name != "c004":
            play.server.take_signature(name, play.clients[name].sign_list(flags))
    certificate = play.server.close_signatures()
    reveals = [play.clients[n].reveal(certificate) for n in play.names if n != "c004"]
    assert all(victim not in reveal.seeds for reveal in reveals)
    assert sum(victim in reveal.keys for reveal in reveals) == 9


def test_a_chosen_one_is_not_told_apart_by_dropping_its_neighbours() -> None:
    """Survivors of whom a window of neighbours was dropped are refused: the group could be cut there."""
    play = after_vectors(60, Promise(0.3, 0.03))
    group = play.group
    assert not group.bounds.complete
    half = group.bounds.neighbours // 2
    flags = np.ones(60, np.bool_)
    flags[[group.ring[i] for i in range(half - group.bounds.window + 1)]] = False
    assert flags.sum() >= play.round.promise.fewest(60)
    left = next(play.names[i] for i in range(60) if flags[i])
    with pytest.raises(UpdateRejected, match="neighbours in a row"):
        play.clients[left].sign_list(flags)


def test_threshold_less_one_colluders_learn_nothing_of_a_survivor() -> None:
    """The server and t - 1 of its neighbours: its mask key's shares are one too few, as Shamir's law says."""
    play = after_vectors()
    threshold = play.group.bounds.threshold
    victim = 0
    shares = {}
    for member in range(1, threshold):  # they give away all that they have
        shares[member + 1] = play.clients[play.names[member]]._key_shares[victim]
    real = play.clients["c000"]._mask.secret.value
    try:
        found = join(shares, "c000").value
    except DecodeError:
        found = b""
    assert len(shares) == threshold - 1
    assert found != real
    shares[threshold + 1] = play.clients[play.names[threshold]]._key_shares[victim]
    assert join(shares, "c000").value == real  # the law is tight


# --- replays --------------------------------------------------------------------------------------


def test_a_round_is_not_told_twice() -> None:
    """The sums of two groups that differ by one client would be that client's vector."""
    play = Play(5, Promise(0.3, 0.0))
    play.whole(play.some_values())
    with pytest.raises(UpdateRejected, match="signed the survivors of"):
        play.client("c000")


def test_each_answer_counts_once() -> None:
    play = Play(5, Promise(0.3, 0.0))
    play.keys()
    with pytest.raises(UpdateRejected):
        play.server.take_advert("c000", play.group.adverts[0])
    with pytest.raises(UpdateRejected):
        play.server.take_advert("c000", play.group.adverts[1])
    play.shares()
    with pytest.raises(UpdateRejected):
        play.server.take_shares("c000", {})
    play.vectors(play.some_values())
    with pytest.raises(UpdateRejected):
        play.server.take_masked("c000", play.sent["c000"])
    play.signatures()
    with pytest.raises(UpdateRejected):
        play.server.take_signature("c000", bytes(64))
    with pytest.raises(UpdateRejected):
        play.server.take_reveal("c000", Reveal({}, {}))


def test_signatures_of_another_round_make_no_quorum() -> None:
    plays = [after_vectors(), after_vectors()]
    for play in plays:
        play.signatures()
    with pytest.raises(UpdateRejected, match="over the list"):
        plays[0].clients["c000"].reveal(plays[1].certificate)


# --- clients that lie -----------------------------------------------------------------------------


def test_false_shares_end_the_round_by_name() -> None:
    play = after_vectors(but=("c009",))
    play.signatures()
    for name in play.signed:
        reveal = play.clients[name].reveal(play.certificate)
        if name == "c001":
            reveal = replace(reveal, keys={9: bytes(33)})
        play.server.take_reveal(name, reveal)
    with pytest.raises(EmptyRound, match="c009"):
        play.server.finish()


def test_strangers_are_refused() -> None:
    play = Play(5, Promise(0.3, 0.0))
    advert = play.clients["c000"].advertise()
    with pytest.raises(UpdateRejected):
        play.server.take_advert("c001", advert)
    with pytest.raises(HeadwaterError):
        play.server.take_advert("c000", replace(advert, index=99))
    with pytest.raises(HeadwaterError):
        Advert.from_bytes(b"")
    with pytest.raises(UpdateRejected, match="sorted names"):
        MaskingClient(play.round, "eve", enrolled_key("eve").sign, play.enrolled, ProcessMemory())


# --- more than one sum ----------------------------------------------------------------------------


def test_two_that_reveal_are_not_told_apart_by_a_second_sum_of_the_others() -> None:
    """A server states a threshold of two and lets two clients reveal; the others' sum would give theirs."""
    play = Play(10, PROMISE)
    play.keys()
    low = replace(play.group, bounds=GroupBounds(10, 9, 2, 0))
    play.group = play.server.group = low
    play.shares()
    values = play.some_values()
    play.vectors(values)
    play.signatures()
    for name in ("c000", "c001", "c009"):  # the last one is the server's own
        play.server.take_reveal(name, play.clients[name].reveal(play.certificate))
    total = play.server.finish()
    assert np.array_equal(total.values[0], plain_sum(values, play.names)[0])
    play.round = replace(play.round, attempt=b"another attempt.", names=play.names[2:])
    for name in play.names[2:9]:
        with pytest.raises(UpdateRejected, match="signed the survivors of"):
            play.client(name)


def test_a_group_smaller_than_the_federation_states_is_refused() -> None:
    """A server that asks one client and its own would have them all lie within its fraction of many."""
    with pytest.raises(UpdateRejected, match="at least 10 clients"):
        Play(4, Promise(0.3, 0.1, least=10))
