"""A lasting run whose state is coefficients of seeds: crashes, a rollback, clients that lost theirs."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.errors import DecodeError
from headwater.proto.wire import encode_reply
from headwater.protocol.messages import ClientProfile, DeviceProfile, MethodCost, ProfileRequest
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.handshake import profile_of
from headwater.server.clients.run_control import Interrupted
from headwater.server.events import ClientDone, ClientFailed, Notice, RoundEnded
from headwater.server.storage.durability import OpenRoundRecord
from headwater.server.storage.profiles import profile_from
from headwater.server.storage.run_folder import RunFolder
from tests.server.storage import test_durability as test_deployment
from tests.support.runs import tiny_federation

KSEED = {"kind": "kseed", "seeds": 64, "max_steps": 2, "learning_rate": 1e-3}
MIXED = {
    "methods": {"seeds": {"training": KSEED}, "zo": {"training": {"kind": "mezo", "max_steps": 2}}},
    "assignment": {"kind": "shares", "shares": {"seeds": 0.34, "zo": 0.66}},
}


class Site(test_deployment.Site):
    """Three owners of texts, and a tiny encoder."""

    def __init__(self, folder, name, **tables):
        file = tiny_federation(folder / f"{name}-file", evaluation={"every": 0}, **tables)
        self.loaded = load_federation(file, ["cohort.min_clients=3", "cohort.retry_s=0.05"])
        self.folder = RunFolder.create(folder / name, self.loaded, {"engine": "test"})
        self.asked = test_deployment.Counter()
        self.changes, self.rollback, self.leaving = self.loaded.settings, None, ""


@pytest.fixture(autouse=True)
def three_clients(monkeypatch):
    monkeypatch.setattr(test_deployment, "CLIENTS", 3)


@pytest.mark.parametrize("tables", [{"training": KSEED}, MIXED], ids=["seeds", "mixed"])
def test_a_server_that_dies_at_any_update_comes_to_the_same_bits(tmp_path, tables):
    calm = Site(tmp_path, "calm", **tables)
    calm.go()
    assert len(set(calm.states)) == 4
    for moment in (1, 2, 5, 9):
        site = Site(tmp_path, f"crash{moment}", **tables)
        with pytest.raises(Interrupted):
            site.go(crash_at=moment, kinds=ClientDone)
        site.go()
        assert site.states == calm.states
        assert sum(site.asked.values()) <= 9 + 3


def test_after_a_rollback_the_whole_adapter_travels(tmp_path):
    site, told, ended = Site(tmp_path, "back", training=KSEED), [], []

    def tell(event):
        if isinstance(event, Notice):
            told.append(event.text)
        if isinstance(event, RoundEnded) and event.round == 2 and not ended:
            ended.append(event)
            site.rollback = 2  # the version after round 1

    site.go(tell=tell)
    assert any("the whole adapter from here on" in text for text in told)
    down = [r["bytes"]["down"] for r in site.records]
    assert down[1] < down[3] > down[2]
    assert len(site.states) == 4


def test_clients_that_lost_their_coefficients_are_asked_again_with_all_of_them(tmp_path):
    calm, site, failed = Site(tmp_path, "calm", training=KSEED), Site(tmp_path, "lost", training=KSEED), []
    calm.go()

    def tell(event):
        if isinstance(event, RoundEnded) and event.round == 2:
            for path in site.folder.clients.rglob("*"):
                if path.is_file() and "sums" in path.name:
                    path.unlink()
            lost.append(event)
        if isinstance(event, Notice) and "is sent the whole adapter" in event.text:
            repaired.append(event.text)
        if isinstance(event, ClientFailed):
            failed.append(event.reason)

    lost, repaired = [], []
    site.go(tell=tell)
    assert lost
    # the process's memory helped the first of the three, whose base it last had
    assert (len(repaired), failed) == (2, [])
    assert site.states == calm.states


def profile(device, name="ann"):
    return ClientProfile(name, 5, 1, "0" * 64, "1" * 64, "run", "1", device)


def test_a_device_outlives_a_restart_with_its_profile(tmp_path):
    device = DeviceProfile(2**30, 2, {"default": MethodCost(2**20, 0.25, 8)})
    record = OpenRoundRecord(
        3, {"ann": profile(device), "ben": profile(None, "ben")}, {2: "x"}, 9, {"ann": "default"}
    )
    record.save(tmp_path / "r")
    loaded = OpenRoundRecord.load(tmp_path / "r")
    assert loaded is not None
    assert loaded.profiles["ann"] == profile(device)
    assert loaded.methods == {"ann": "default"}
    assert profile_from({"client": "a", "train_examples": 1, "validation_examples": 0, "model_sha256": "",
                         "spec": ""}).device is None  # fmt: skip  # an older file


class Context:
    """What a profile must fit."""

    base_sha256 = "0" * 64

    def __init__(self, loaded):
        self.loaded = loaded
        self.spec = type("Spec", (), {"fingerprint": lambda self: "1" * 64})()


@pytest.mark.parametrize(("batch", "fits"), [(8, True), (0, False)])
def test_a_device_that_no_method_fits_is_refused_when_it_introduces_itself(tmp_path, batch, fits):
    file = tiny_federation(tmp_path, assignment={"kind": "planner"})
    device = DeviceProfile(2**20, 1, {"default": MethodCost(2**30, 0.0, batch)})
    data = encode_reply(profile(device))
    incoming = ReceivedReply("ann", ProfileRequest, 0, data, "", len(data))
    if fits:
        assert profile_of(incoming, Context(load_federation(file)), "run").device == device
        return
    with pytest.raises(DecodeError, match="client ann, device"):
        profile_of(incoming, Context(load_federation(file)), "run")
