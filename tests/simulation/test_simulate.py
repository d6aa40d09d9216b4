"""A whole federation on a tiny model: what it writes, and that the same bits come out every way."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch

from headwater.config import load_federation
from headwater.errors import FederationStopped, StorageError
from headwater.server.events import ClientDone, ClientFailed, Notice, RoundEnded
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from headwater.text import human_bytes
from headwater.training.backprop import BackpropTrainer
from tests.support.runs import OWNERS, bare_federation, resume, run, tiny_federation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("fed"))


@pytest.fixture(scope="module")
def undisturbed(file, tmp_path_factory):
    """The folder of a run of ``file`` to its end; its summary is in it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "a"
    run(file, folder)
    return folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def require_same(folder, undisturbed):
    """Every round's state and the adapter are the same bits."""
    assert [r["state_sha256"] for r in rounds(folder)] == [r["state_sha256"] for r in rounds(undisturbed)]
    assert summary_of(folder)["adapter_sha256"] == summary_of(undisturbed)["adapter_sha256"]


def rounds(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_run_folder_has_what_it_promises(file, tmp_path):
    summary, events = run(file, tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "adapter", "federation.toml", "receipts", "rounds.jsonl", "summary.json", "report.html", "state",
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    records = rounds(tmp_path / "run")
    assert [r["round"] for r in records] == [0, 1, 2, 3]
    assert set(records[1]["clients"]) == set(OWNERS)
    assert summary["clients"] == 3
    assert summary["rounds"] == 3
    assert summary["metric"]["name"] == "accuracy"
    assert summary["metric"]["on"] == "test"
    assert summary["metric"]["best"] == max(r["test"]["accuracy"] for r in records)
    assert summary["metric"]["best"] > summary["metric"]["start"]
    assert 0 < summary["bytes"]["up"] < summary["bytes"]["up_dense"] / 4
    assert [e.round for e in events if isinstance(e, RoundEnded)] == [0, 1, 2, 3]
    best = max(records, key=lambda r: (r["test"]["accuracy"], -r["round"]))
    assert summary["adapter_round"] == best["round"]
    assert summary["adapter_sha256"] == best["state_sha256"]


def test_bytes_are_those_of_the_messages(file, tmp_path, monkeypatch):
    from headwater.server.clients import exchange

    seen = {"up": 0, "down": 0}

    class Counting(exchange.Exchange):
        def send(self, requests, round, *plan):
            sizes = super().send(requests, round, *plan)
            if round:
                seen["down"] += sum(sizes.values())
            return sizes

        def poll(self, *kinds):
            for incoming in super().poll(*kinds):
                if incoming.round:
                    seen["up"] += len(incoming.data)
                yield incoming

    monkeypatch.setattr("headwater.server.rounds.federation_server.Exchange", Counting)
    summary, _ = run(file, tmp_path / "run", "evaluation.clients=false")
    assert summary["bytes"]["up"] == seen["up"]
    assert summary["bytes"]["down"] == seen["down"]


def test_same_file_and_seed_same_adapter(file, tmp_path, undisturbed):
    first = summary_of(undisturbed)
    second, _ = run(file, tmp_path / "b")
    other, _ = run(file, tmp_path / "c", "federation.seed=6")
    assert first["adapter_sha256"] == second["adapter_sha256"] != other["adapter_sha256"]
    assert first["federation_sha256"] == other["federation_sha256"]


@pytest.fixture(params=["vector", pytest.param("model", marks=pytest.mark.slow)])
def any_file(request, tmp_path):
    """A federation of a bare vector, whose processes start in a few seconds, or of a real model."""
    if request.param == "model":
        return tiny_federation(tmp_path / "fed")
    return bare_federation(tmp_path / "fed")


def test_ray_gives_the_same_adapter(any_file, tmp_path):
    """In a process of its own: Ray ends the one that it runs in when its own processes fail."""
    pytest.importorskip("ray")
    file = any_file
    here, _ = run(file, tmp_path / "a")
    tracked = ["--set", "trackers=[{ kind = 'tensorboard' }]"]
    command = [sys.executable, "-m", "headwater", "simulate", str(file), "--engine", "ray", *tracked]
    done = subprocess.run([*command, "--out", str(tmp_path / "b"), "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert there["engine"] == "ray"
    assert there["trackers"]["tensorboard"]["through"] == there["rounds"]
    assert there["adapter_sha256"] == here["adapter_sha256"]
    assert there["bytes"] == {
        **here["bytes"],
        "up": there["bytes"]["up"],
        "up_dense": there["bytes"]["up_dense"],
    }


def test_stop_after_a_round_then_resume(file, tmp_path, undisturbed):
    asked = []
    stopped, _ = run(file, tmp_path / "b", should_stop=lambda: bool(asked) or asked.append(1))
    assert stopped["stopped"] == "stopped"
    assert stopped["rounds"] < 3
    assert (tmp_path / "b" / "adapter" / "adapter_config.json").exists()
    finished, _ = resume(tmp_path / "b")
    assert finished["stopped"] == "rounds"
    require_same(tmp_path / "b", undisturbed)


RARELY = ("federation.rounds=6", "evaluation.every=3", "evaluation.patience=2")


@pytest.fixture(scope="module")
def rarely_evaluated(file, tmp_path_factory):
    return run(file, tmp_path_factory.mktemp("rarely") / "a", *RARELY)[0]


@pytest.mark.parametrize("rounds_before_stop", [1, 2, 3])
def test_a_stop_between_evaluations_changes_neither_best_nor_patience(
    file, tmp_path, rarely_evaluated, rounds_before_stop
):
    done = []
    loaded = load_federation(file, RARELY)
    folder = RunFolder.create(tmp_path / "b", loaded, {"engine": "inprocess"})
    simulate(
        loaded,
        folder,
        observer=lambda event: done.append(event) if isinstance(event, RoundEnded) else None,
        should_stop=lambda: len(done) > rounds_before_stop,
    )
    finished, _ = resume(tmp_path / "b")
    assert finished["adapter_sha256"] == rarely_evaluated["adapter_sha256"]
    assert finished["metric"] == rarely_evaluated["metric"]


class Crash(BaseException):
    """Stands for kill -9 at this very moment: nothing may clean up after it."""


@pytest.mark.parametrize("moment", range(1, 9))
def test_crash_at_any_reply_then_resume(file, tmp_path, undisturbed, moment):
    seen = []

    def crash(event):
        if isinstance(event, ClientDone):
            seen.append(event)
            if len(seen) == moment:
                raise Crash

    loaded = load_federation(file)
    folder = RunFolder.create(tmp_path / "b", loaded, {"engine": "inprocess"})
    with pytest.raises(Crash):
        simulate(loaded, folder, observer=crash)
    resume(tmp_path / "b")
    require_same(tmp_path / "b", undisturbed)


def test_kill_9_in_the_middle_of_a_round_then_resume(file, tmp_path):
    command = [sys.executable, "-m", "headwater", "simulate", str(file), "--out", str(tmp_path / "b")]
    sets = ["--set", "federation.rounds=1000", "--set", "training.epochs=5.0"]
    process = subprocess.Popen([*command, *sets], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    clients = tmp_path / "b" / "state" / "clients"
    try:
        while not clients.exists():  # a first client of round 1 has answered
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "b" / "summary.json").exists()
    most = len(rounds(tmp_path / "b")) + 1
    finished, _ = resume(tmp_path / "b", should_stop=lambda: len(rounds(tmp_path / "b")) > most)
    whole, _ = run(file, tmp_path / "a", f"federation.rounds={finished['rounds']}", "training.epochs=5.0")
    assert finished["adapter_sha256"] == whole["adapter_sha256"]
    assert [r["state_sha256"] for r in rounds(tmp_path / "a")] == [
        r["state_sha256"] for r in rounds(tmp_path / "b")
    ]


def test_a_diverged_client_is_named_and_left_out(file, tmp_path, monkeypatch):
    original = BackpropTrainer.train

    def poisoned(self, tasks, *, key):
        from dataclasses import replace

        changed = [
            replace(t, state=t.state.map(lambda v: torch.full_like(v, math.nan))) if t.client == "ben" else t
            for t in tasks
        ]
        return original(self, changed, key=key)

    monkeypatch.setattr(BackpropTrainer, "train", poisoned)
    summary, events = run(file, tmp_path / "run")
    assert {(e.client) for e in events if isinstance(e, ClientFailed)} == {"ben"}
    assert summary["failures_total"] == 3
    assert "ben" in summary["failures"][0]["reason"]
    records = rounds(tmp_path / "run")
    assert {c for c, row in records[1]["clients"].items() if "failed" in row} == {"ben"}
    assert len({r["state_sha256"] for r in records}) == 4  # every round moved the adapter


def test_all_clients_failing_stops_with_the_state_kept(file, tmp_path, monkeypatch, undisturbed):
    original = BackpropTrainer.train
    calls = []

    def poisoned(self, tasks, *, key):
        from dataclasses import replace

        calls.append(1)
        if len(calls) < 2:
            return original(self, tasks, key=key)
        broken = [replace(t, state=t.state.map(lambda v: torch.full_like(v, math.nan))) for t in tasks]
        return original(self, broken, key=key)

    monkeypatch.setattr(BackpropTrainer, "train", poisoned)
    with pytest.raises(FederationStopped, match=r"round 2.*resume"):
        run(file, tmp_path / "run")
    monkeypatch.setattr(BackpropTrainer, "train", original)
    resume(tmp_path / "run")
    require_same(tmp_path / "run", undisturbed)


def test_disk_full_keeps_the_old_checkpoint(file, tmp_path, monkeypatch, undisturbed):
    from headwater.server.storage import checkpoint

    original = checkpoint.write_atomically

    def full(path, data, **options):
        if json.loads(checkpoint_round(data)) == 2:
            raise StorageError(f"writing {path}", expected="room", got="No space left on device")
        original(path, data, **options)

    def checkpoint_round(data):
        size = int.from_bytes(data[:8], "little")
        return str(json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["headwater"])["round"])

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(StorageError, match="No space left"):
        run(file, tmp_path / "b")
    monkeypatch.setattr(checkpoint, "write_atomically", original)
    resume(tmp_path / "b")
    require_same(tmp_path / "b", undisturbed)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy.kind=ties"],
        ["strategy.kind=fisher", "strategy.examples=8"],
        ["strategy.kind=median"],
        ["strategy.space=ffa"],
        ["strategy.server_momentum=0.5", "cohort.clients_per_round=2"],
        [
            "strategy.server_optimizer=yogi",
            "strategy.server_learning_rate=0.01",
            "strategy.norm_bound=1e-4",
        ],
        ["codec.up.kind=dense", "codec.up.dtype=bf16", "codec.down.dtype=bf16"],
        ["privacy.clip_l2=0.05"],
        ["adapter.kind=prompt", "adapter.tokens=4", "data.max_tokens=64"],
    ],
    ids=lambda o: o[0],
)
def test_every_part_in_a_whole_run(tmp_path, overrides):
    tables = {}
    if overrides[0].startswith("codec.up"):
        tables["codec"] = {"up": {"kind": "dense"}}
    if overrides[0].startswith("adapter"):
        tables["adapter"] = {"kind": "prompt", "tokens": 4}
    file = tiny_federation(tmp_path / "fed", **tables)
    if tables.get("adapter"):
        text = file.read_text()
        file.write_text(text.replace("rank = 2\n", "").replace("alpha = 4.0\n", ""))
    summary, _ = run(file, tmp_path / "run", *overrides)
    assert not summary["failures"]
    assert summary["rounds"] == 3
    record = rounds(tmp_path / "run")[-1]
    if "strategy.space=ffa" in overrides or "strategy.kind=ties" in overrides:
        assert record["gap"]["exact"]
    if "strategy.norm_bound=1e-4" in overrides:
        assert record["merge"]["clipped"] == len(record["clients"]) == 3
        assert record["merge"]["delta_norm"] <= 1e-4
        assert record["clients"]["ann"]["clipped_from"] > 1e-4
    if "strategy.kind=fisher" in overrides:
        assert record["clients"]["ann"]["bytes_fisher"] > 0
        assert record["clients"]["ann"]["fisher_seconds"] >= 0
        assert 0 < summary["fisher"]["bytes_up"] < summary["bytes"]["up"]
        assert "diagonal Fishers" in (tmp_path / "run" / "report.html").read_text()


def test_control_variates_resume_bit_for_bit(tmp_path):
    """The server's are in its checkpoint, a client's in its store, where they wait for the server's word."""
    tables = {
        "strategy": {"kind": "mean", "control_variates": True, "server_momentum": 0.5},
        "training": {"kind": "backprop", "optimizer": "sgd", "learning_rate": 0.5},
        "codec": {"up": {"kind": "dense"}},
    }
    file = tiny_federation(tmp_path / "fed", **tables)
    whole, _ = run(file, tmp_path / "whole")
    assert not whole["failures"]
    assert rounds(tmp_path / "whole")[-1]["merge"]["control_norm"] > 0
    asked = []
    stopped, _ = run(file, tmp_path / "half", should_stop=lambda: bool(asked) or asked.append(1))
    assert stopped["rounds"] < whole["rounds"]
    resumed, _ = resume(tmp_path / "half")
    assert resumed["adapter_sha256"] == whole["adapter_sha256"]


@pytest.mark.parametrize(
    "tables",
    [
        {"codec": {"up": {"kind": "dense"}}},
        {"schedule": {"kind": "buffered", "buffer": 2}},
        {"training": {"kind": "spry", "learning_rate": 0.01}},
    ],
    ids=["rounds", "buffer", "parts"],
)
def test_a_median_resumes_bit_for_bit_and_tells_what_it_keeps(tmp_path, tables):
    """Where updates are kept until the merge, as where they are summed."""
    file = tiny_federation(tmp_path / "fed", strategy={"kind": "median"}, **tables)
    whole, events = run(file, tmp_path / "whole")
    assert not whole["failures"]
    merge = rounds(tmp_path / "whole")[-1]["merge"]
    told = [event.text for event in events if isinstance(event, Notice)]
    (kept,) = [text for text in told if "strategy 'median' keeps the updates" in text]
    assert kept.endswith(f"up to {human_bytes(merge['kept_bytes'])} of memory")
    assert any("sees zeros" in text for text in told) == ("codec" not in tables)
    asked = []
    stopped, _ = run(file, tmp_path / "half", should_stop=lambda: bool(asked) or asked.append(1))
    assert stopped["rounds"] < whole["rounds"]
    resumed, _ = resume(tmp_path / "half")
    assert resumed["adapter_sha256"] == whole["adapter_sha256"]


def test_patience_ends_the_run(file, tmp_path):
    summary, _ = run(
        file, tmp_path / "run", "federation.rounds=50", "evaluation.patience=2", "training.learning_rate=1e-9"
    )
    assert summary["stopped"] == "patience"
    assert summary["rounds"] < 50


def test_small_clients_own_numbers_are_hidden(file, tmp_path):
    run(file, tmp_path / "run", "evaluation.min_client_examples=4")
    record = rounds(tmp_path / "run")[1]
    assert set(record["clients_each"]) == {"ann"}
    assert record["clients_pooled"]


def test_a_clients_store_of_which_a_power_cut_left_the_name_is_refused(tmp_path):
    def crash(event):
        if isinstance(event, ClientDone) and event.round == 2:
            raise SystemExit

    loaded = load_federation(bare_federation(tmp_path / "f"))
    folder = RunFolder.create(tmp_path / "a", loaded, {"engine": "inprocess"})
    with pytest.raises(SystemExit):
        simulate(loaded, folder, observer=crash)
    store = tmp_path / "a" / "state" / "clients" / "store.sqlite"
    store.write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"store\.sqlite: expected what the clients kept.*got an empty file"
    ):
        resume(tmp_path / "a")
    store.unlink()
    assert resume(tmp_path / "a")[0]["rounds"] == 3
