"""Masks between a server and agents: the simulation's bits, whoever dies in whatever step of a sum."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.config import load_federation
from headwater.proto.mask_wire import decode_sum
from headwater.proto.wire import decode_reply, decode_signed, encode_request
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import (
    WITHHELD,
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    MaskReply,
    MaskRequest,
    MaskStep,
    ProfileRequest,
    Request,
    TrainRequest,
)
from headwater.receipts.sent import SENT, read_sent
from headwater.security.secagg.bounds import Promise
from headwater.security.secagg.group import Advert
from headwater.server.clients.run_control import Interrupted
from headwater.strategies.summing import why_no_sums
from tests.client.agent.devices import VECTOR_SHA256
from tests.support.masked_fleet import Device, Fleet
from tests.support.runs import bare_federation, run

NAMES = [f"client-{i:04d}" for i in range(5)]
TABLES: dict[str, Any] = {
    "privacy": {"masks": True, "mask_dropouts": 0.34, "mask_wait_s": 5},
    "cohort": {"min_clients": 3, "retry_s": 0.1},
    "data": {"kind": "none", "clients": 5, "examples": 7},
    "evaluation": {"every": 0},
}
STEPS = list(MaskStep)


def federation(folder: Path, **tables: Any) -> Path:
    return bare_federation(folder / "fed", size=300, **(TABLES | tables))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def states(folder: Path) -> list[str]:
    return [record["state_sha256"] for record in records(folder)]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("simulated")
    run(federation(home), home / "run")
    return states(home / "run")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, federation(tmp_path), NAMES)


def at(step: MaskStep, name: str, act: Callable[[Device], None], round: int = 2) -> Callable[..., None]:
    """Do it once, when this device is asked this step of the round's sum."""
    done: list[bool] = []

    def before(device: Device, request: Request) -> None:
        mine = isinstance(request, MaskRequest) and (request.round, request.step) == (round, step)
        if mine and device.name == name and not done:
            done.append(True)
            act(device)

    return before


def dies(device: Device) -> None:
    device.online = False


def crash(device: Device) -> None:
    raise Interrupted


def replies(fleet: Fleet, kind: type) -> list[Any]:
    opened = (decode_reply(decode_signed(raw, max_bytes=2**24)[0], max_bytes=2**24) for *_, raw in fleet.sent)
    return [reply for reply in opened if isinstance(reply, kind)]


# --- bits, and what the server gets to see ----------------------------------------------------------


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"codec": {"up": {"kind": "randk", "density": 0.2}}},
        {"strategy": {"kind": "ties"}},
        {"codec": {"up": {"kind": "topk", "density": 0.2, "error_feedback": "ef14"}}},
        {"strategy": {"kind": "mean", "weighting": "equal"}, "privacy": TABLES["privacy"] | {"clip_l2": 0.1}},
    ],
    ids=["mean", "randk", "ties", "error-feedback", "clipped"],
)
def test_agents_mask_to_the_simulations_bits(tmp_path: Path, tables: dict[str, Any]) -> None:
    file = federation(tmp_path, **tables)
    run(file, tmp_path / "simulated")
    fleet = Fleet(tmp_path, file, NAMES)
    assert fleet.serve().finished
    assert states(fleet.folder.path) == states(tmp_path / "simulated")
    assert len(set(states(fleet.folder.path))) == 4


def test_the_server_has_no_update(tmp_path: Path) -> None:
    """Neither in what it is sent nor on its disk, whenever one looks: every vector is looked for."""
    fleet = Fleet(tmp_path, federation(tmp_path, codec={"up": {"kind": "dense"}}), NAMES)
    vectors: list[bytes] = []
    seen: list[Path] = []

    def look(device: Device, request: Request) -> None:
        held = device.settings.state / "runs" / "run" / "masked.vector"
        if isinstance(request, MaskRequest) and held.exists():
            vectors.append(held.read_bytes()[-300 * 8 :][:64])
            for path in fleet.folder.path.rglob("*"):
                if path.is_file():
                    seen.append(path)
                    assert vectors[-1] not in path.read_bytes(), path

    fleet.before = look
    fleet.serve()
    assert len(set(vectors)) == 15
    assert any("spool" in str(path) for path in seen)
    for reply in replies(fleet, EncodedUpdate):
        assert (reply.delta.codec, len(reply.delta.body), reply.statistics) == (WITHHELD, 32, {})
    said = b"".join(raw for *_, raw in fleet.sent)
    assert not any(vector in said for vector in vectors)


def test_each_device_can_show_that_its_masked_vector_is_in_the_round(fleet: Fleet) -> None:
    fleet.serve()
    book = (fleet.folder.path / "receipts").rglob("*")
    text = b"".join(path.read_bytes() for path in book if path.is_file())
    for device in fleet.devices.values():
        sent = list(read_sent(device.settings.state / SENT))
        assert [one.round for one in sent] == [1, 2, 3]
        assert all(one.sha256.encode() in text or bytes.fromhex(one.sha256) in text for one in sent)


# --- deaths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name.lower())
def test_a_server_that_dies_in_a_step_begins_the_sum_anew(
    fleet: Fleet, simulated: list[str], step: MaskStep
) -> None:
    """With fresh keys, without training anew, to the same bits: also where a list of survivors was signed."""
    fleet.before = at(step, NAMES[2], crash)
    with pytest.raises(Interrupted):
        fleet.serve()
    fleet.before = lambda device, request: None
    assert fleet.serve().finished
    assert states(fleet.folder.path) == simulated
    assert not any("failed" in row for r in records(fleet.folder.path) for row in r["clients"].values())
    adverts = [Advert.from_bytes(r.content) for r in replies(fleet, MaskReply) if r.step is MaskStep.KEYS]
    assert len({a.mask_key for a in adverts} | {a.seal_key for a in adverts}) == 2 * len(adverts)
    assert len(adverts) > 15
    assert all(device.worker.trained == 3 for device in fleet.devices.values())


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name.lower())
def test_a_device_that_dies_in_a_step_is_left_out_alone(
    fleet: Fleet, simulated: list[str], step: MaskStep
) -> None:
    def back(device: Device, request: Request) -> None:
        lost(device, request)
        if isinstance(request, TrainRequest) and request.round == 3:
            for other in fleet.devices.values():
                if not other.online:
                    other.start()

    lost = at(step, NAMES[2], dies)
    fleet.before = back
    assert fleet.serve().finished
    row = records(fleet.folder.path)[2]["clients"][NAMES[2]]
    in_the_sum = step > MaskStep.VECTOR  # then the others unmask without it
    assert ("failed" in row) is not in_the_sum
    assert (states(fleet.folder.path)[2] == simulated[2]) is in_the_sum
    assert len(records(fleet.folder.path)) == 4


@pytest.mark.parametrize("step", [MaskStep.SHARES, MaskStep.LIST], ids=lambda step: step.name.lower())
def test_an_agent_that_starts_again_has_dropped_out_of_the_sum(fleet: Fleet, step: MaskStep) -> None:
    """Its keys are gone, and it says so; the next round has it again."""
    fleet.before = at(step, NAMES[2], lambda device: device.start())
    assert fleet.serve().finished
    device = fleet.devices[NAMES[2]]
    assert any("attempt that this device has keys of" in line for line in device.log)
    assert "failed" not in records(fleet.folder.path)[3]["clients"][NAMES[2]]


def test_too_many_drop_outs_end_an_attempt_and_the_next_one_has_all(
    fleet: Fleet, simulated: list[str]
) -> None:
    gone = [at(MaskStep.VECTOR, name, lambda device: device.start()) for name in NAMES[:3]]

    def before(device: Device, request: Request) -> None:
        for one in gone:
            one(device, request)

    fleet.before = before
    assert fleet.serve().finished
    assert states(fleet.folder.path) == simulated
    assert any("no sum under masks yet" in str(event) for event in fleet.events)


def test_a_round_whose_list_was_signed_is_left_out_without_one_of_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody signs another list: the round moves nothing, by name, and the run goes on with the others."""
    fleet.before = at(MaskStep.REVEAL, NAMES[2], crash)
    with pytest.raises(Interrupted):
        fleet.serve()
    record = json.loads((fleet.state / "masked_round.json").read_text())
    assert record["survivors"] == NAMES
    monkeypatch.setattr("headwater.server.rounds.masked_exchange.ATTEMPTS", 1)
    fleet.before = at(MaskStep.KEYS, NAMES[2], dies)
    assert fleet.serve().finished
    found = records(fleet.folder.path)
    assert len(found) == 4
    assert found[2]["state_sha256"] == found[1]["state_sha256"] != found[3]["state_sha256"]
    assert all("failed" in row for row in found[2]["clients"].values())
    assert any("round 2 is left out" in str(event) for event in fleet.events)
    lists = [r for *_, r in [(n, r) for n, r, _ in fleet.sent] if isinstance(r, MaskRequest) and r.round == 2]
    assert {decode_sum(r.content).exactly for r in lists if r.step is MaskStep.KEYS} == {(), tuple(NAMES)}


def test_edge_aggregators_are_refused_by_name(tmp_path: Path) -> None:
    assert "privacy.masks" in str(why_no_sums(load_federation(federation(tmp_path)).settings))


# --- what an owner allows ---------------------------------------------------------------------------


def test_an_owner_that_wants_more_clients_stays_out_and_the_organiser_reads_why(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, federation(tmp_path, federation={"rounds": 1}), NAMES)
    strict = Device(NAMES[0], tmp_path / "strict", {"min_masked_clients": 4})
    fleet.devices[NAMES[0]] = strict
    assert fleet.serve().finished
    why = "policy min_masked_clients 4: the run masks sums of at least 3"
    clients = records(fleet.folder.path)[1]["clients"]
    assert why in clients[NAMES[0]]["failed"]
    assert sum("failed" in row for row in clients.values()) == 1
    assert (strict.worker.trained, fleet.steps(NAMES[0])) == (0, [])
    assert "the run must mask updates" in strict.log[-1]


def test_a_sum_of_fewer_than_the_file_says_is_refused_and_the_organiser_reads_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lowers the number within a run, as ``set`` does not let it, gets no key of anybody."""
    cohort = TABLES["cohort"] | {"min_clients": 4, "retry_s": 0.5}
    fleet = Fleet(tmp_path, federation(tmp_path, cohort=cohort), NAMES)
    monkeypatch.setattr(
        "headwater.server.rounds.base.Promise", lambda out, colluding, least: Promise(out, colluding, 3)
    )
    monkeypatch.setattr("headwater.server.rounds.masked_exchange.ATTEMPTS", 2)
    asked_s: list[float] = []

    def look(device: Device, request: Request) -> None:
        if isinstance(request, MaskRequest) and device.name == NAMES[0]:
            asked_s.append(time.monotonic())
            if len(asked_s) == 3:
                raise Interrupted

    fleet.before = look
    with pytest.raises(Interrupted):
        fleet.serve()
    assert not replies(fleet, MaskReply)
    assert len(records(fleet.folder.path)) == 1
    notice = next(str(event) for event in fleet.events if "no sum under masks yet" in str(event))
    assert f"5 refused, among them {NAMES[0]}" in notice
    assert "at least 4 clients (cohort.min_clients), and this one is of 3" in notice
    assert asked_s[2] - asked_s[0] >= 1  # and nobody is asked, nor trains, over and over


@pytest.mark.parametrize(
    ("tables", "joins"),
    [({"privacy": {}}, False), ({}, False), ({"cohort": {"min_clients": 4}}, True)],
    ids=["without-masks", "too-few", "enough"],
)
def test_an_owner_that_wants_masks_takes_part_in_no_other_run(
    tmp_path: Path, tables: dict[str, Any], joins: bool
) -> None:
    fleet = Fleet(tmp_path, federation(tmp_path, **tables), NAMES, policy={"min_masked_clients": 4})
    device, settings = fleet.devices[NAMES[0]], fleet.loaded.settings
    request = ProfileRequest("run", settings.told_to_devices(""), VECTOR_SHA256, "0.1.0")
    parts = dict(zip(("envelope", "state"), encode_request(request), strict=True))
    reply = decode_reply(decode_signed(device.handler.answer(parts), max_bytes=0)[0], max_bytes=0)
    assert isinstance(reply, ClientProfile) is joins
    if isinstance(reply, ClientFailure):
        assert reply.failure.code is FailureCode.POLICY_MASKS
        assert "policy min_masked_clients 4" in reply.reason
