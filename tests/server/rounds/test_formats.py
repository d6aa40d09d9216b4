"""Clients and servers one wire format apart take part in each other's federations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headwater.compression.table import codec_for, readable
from headwater.config.codec import DENSITY_OVER, CompeftCodec, DenseCodec
from headwater.errors import HeadwaterError
from headwater.proto.plan_json import plan_from_json, plan_to_json
from headwater.server.clients.downlink import Downlink
from headwater.server.rounds.open_round import OpenRound
from headwater.strategies import FederatedStrategy
from tests.server.rounds.test_open_round import ROOT, RUN, reply, values
from tests.strategies.test_federated import federation
from tests.strategies.test_mixed import ZERO, profiles

LATER = {"format": 2, "scale_bits": 8, "density_over": "all"}
"""What the second says besides, unless the file says otherwise."""
SETTINGS = {"kind": "compeft", "density": 0.05, "alpha": None, "error_feedback": True}
"""``codec`` in the plans of servers that know no other format than the first, in full."""


def later(**more):
    """What a plan says of the second format; densities by tensor go without saying."""
    return {key: value for key, value in (LATER | more).items() if value != "tensor"}


def opened(**up):
    """A round of one client that names no codecs, and one that names all of this version's."""
    strategy = FederatedStrategy(federation(codec={"up": {"kind": "compeft", **up}}))
    server = strategy.init(ZERO)
    known = profiles("behind", "today")
    known["today"] = replace(known["today"], reads=(*readable(), DENSITY_OVER))
    plan = strategy.plan(server, known, key=ROOT)
    down = Downlink(ROOT).open(server, DenseCodec(kind="dense"), {})
    return OpenRound(plan, down, RUN, known, strategy.aggregator(plan, down.base), ROOT)


EXACT = {"scale_bits": 24, "density_over": "tensor"}
"""What the first format's updates are."""


@pytest.mark.parametrize("more", [{}, EXACT, {"scale_bits": 9}, {"density_over": "tensor"}])
def test_a_client_one_format_behind_takes_part(more):
    round_ = opened(**more)
    asked = {name: json.loads(plan_to_json(plan))["codec"] for name, plan in round_.plan.clients.items()}
    assert asked == {"behind": SETTINGS, "today": SETTINGS | later(**more)}
    codecs = {name: codec_for(plan.codec) for name, plan in round_.plan.clients.items()}
    assert {name: codec.id for name, codec in codecs.items()} == {
        "behind": "compeft.v1", "today": "compeft.v2"
    }  # fmt: skip
    for name, codec in codecs.items():
        round_.fold(reply(round_, name, values(), codec=codec))
    merged = round_.merge()
    assert merged.clients == ("behind", "today")
    sent = codecs["behind"].round_trip(values(), key=ROOT)[1]
    if more == EXACT:
        assert merged.delta.sha256() == sent.sha256()  # the mean of two that are alike


def test_who_does_not_know_a_density_over_all_tensors_is_asked_for_one_of_each():
    strategy = FederatedStrategy(federation(codec={"up": {"kind": "compeft", "density_over": "all"}}))
    known = profiles("first", "behind", "today")
    known["behind"] = replace(known["behind"], reads=readable())
    known["today"] = replace(known["today"], reads=(*readable(), DENSITY_OVER))
    plan = strategy.plan(strategy.init(ZERO), known, key=ROOT)
    asked = {name: json.loads(plan_to_json(one))["codec"] for name, one in plan.clients.items()}
    behind = SETTINGS | later(density_over="tensor")
    assert asked == {"first": SETTINGS, "behind": behind, "today": SETTINGS | LATER}
    assert plan_from_json(plan_to_json(plan.clients["today"])) == plan.clients["today"]


@pytest.mark.parametrize("more", [{"format": 1}, {"budget_bytes": 900}])
def test_a_density_over_all_tensors_needs_a_density_and_the_format_that_has_it(more):
    with pytest.raises(ValueError, match="density_over"):
        CompeftCodec(kind="compeft", density_over="all", **more)


def test_an_update_in_another_format_than_the_plans_is_refused():
    round_ = opened()
    today = codec_for(round_.plan.clients["today"].codec)
    with pytest.raises(HeadwaterError, match=r"codec compeft\.v1.*compeft\.v2"):
        round_.fold(reply(round_, "behind", values(), codec=today))


def test_the_file_can_ask_everybody_for_the_first_format():
    assert {plan.codec.format for plan in opened(format=1).plan.clients.values()} == {1}


def test_a_server_one_format_behind_is_sent_what_it_reads():
    text = plan_to_json(opened().plan.clients["behind"])
    assert json.loads(text)["codec"] == SETTINGS  # as it would ask
    plan = plan_from_json(text)
    assert codec_for(plan.codec).id == "compeft.v1"
    assert plan_to_json(plan) == text


def test_a_plan_says_every_setting_of_a_later_format():
    plan = opened().plan.clients["today"]
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan.codec == CompeftCodec(kind="compeft")


@pytest.mark.parametrize(
    ("said", "bits", "over"),
    [
        ({}, 8, "all"),
        ({"format": 1}, 24, "tensor"),
        ({"budget_bytes": 900}, 8, "tensor"),
        ({"density_over": "tensor"}, 8, "tensor"),
        ({"scale_bits": 24}, 24, "all"),
    ],
)
def test_what_a_file_leaves_out_is_what_its_form_has(said, bits, over):
    codec = CompeftCodec(kind="compeft", **said)
    assert (codec.scale_bits, codec.density_over) == (bits, over)
    assert CompeftCodec(**codec.model_dump()) == codec  # as a resolved file is read again


def test_scale_bits_need_the_format_that_has_them():
    with pytest.raises(ValueError, match="format 2"):
        CompeftCodec(kind="compeft", format=1, scale_bits=12)


def test_a_device_one_format_behind_can_read_the_federation():
    told = json.loads(federation(codec={"up": {"kind": "compeft"}}).told_to_devices())
    assert told["codec"]["up"] == {"kind": "compeft", "density": 0.05, "error_feedback": True}
    told = json.loads(federation(codec={"up": {"kind": "compeft", "scale_bits": 9}}).told_to_devices())
    assert told["codec"]["up"]["scale_bits"] == 9  # such a device says that it cannot
