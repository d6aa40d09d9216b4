"""Whole runs with noise: the budget ends them, a crash spends nothing twice, nothing shortens the ledger."""

from __future__ import annotations

import json

import pytest

from headwater.errors import StorageError
from headwater.privacy.accounting import price
from headwater.privacy.ledger import Ledger
from headwater.server.events import Notice
from headwater.server.rounds import releases
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from headwater.strategies import private_sum
from tests.support.runs import bare_federation, checkpoints_of, resume, run

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
DELTA = 1e-3


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return bare_federation(
        tmp_path_factory.mktemp("f"),
        size=50,
        federation={"rounds": 4},
        data={"clients": 8},
        strategy={"kind": "mean", "weighting": "equal"},
        codec={"up": {"kind": "dense"}},
        cohort={"sampling": "poisson", "clients_per_round": 2, "population": 8},
        privacy={"clip_l2": 0.5, "noise_multiplier": 1.0, "delta": DELTA},
    )


def events_of(out):
    return Ledger(RunFolder(out).ledger).events


def records(out):
    return RunFolder(out).read_rounds()


def test_the_ledger_has_every_round_and_the_record_its_price(file, tmp_path):
    summary, _ = run(file, tmp_path / "run")
    events = events_of(tmp_path / "run")
    assert [event.round for event in events] == [1, 2, 3, 4]
    assert {event.sampling.rate for event in events} == {0.25}
    spent = [price(events[:n], DELTA, "add-or-remove").epsilon for n in range(1, 5)]
    assert [record.privacy["epsilon"] for record in records(tmp_path / "run")[1:]] == spent
    assert summary["privacy"]["epsilon"] == spent[-1]
    assert summary["stopped"] == "rounds"
    assert records(tmp_path / "run")[-1].spent() == f"ε {spent[-1]:.3f} at δ 0.001"
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{spent[-1]:.3f}" in page
    assert "not covered" in page


def test_an_export_has_nothing_that_noise_does_not_cover(file, tmp_path):
    """Receipts and bytes would tell how many were in each round, and hashes of all but one whose is left."""
    summary, _ = run(file, tmp_path / "run")
    assert summary["clients"] == 8
    assert (tmp_path / "run" / "receipts" / "receipts.jsonl").exists()
    folder = tmp_path / "run" / "adapter"
    assert not list(folder.glob("receipt*"))
    card = json.loads((folder / "headwater.json").read_text())["card"]
    assert card["privacy"] == summary["privacy"]
    assert not card.keys() & {"clients", "bytes", "seconds", "failures", "failures_total", "lost"}


def test_the_run_stops_before_the_round_that_would_overspend(file, tmp_path):
    """A budget between the prices of two rounds and of three."""
    run(file, tmp_path / "whole")
    two, three = (price(events_of(tmp_path / "whole")[:n], DELTA, "add-or-remove").epsilon for n in (2, 3))
    out = tmp_path / "run"
    summary, events = run(file, out, f"privacy.epsilon={(two + three) / 2}")
    assert summary["stopped"] == "privacy"
    assert summary["rounds"] == 2
    done = records(out)[1:]
    assert [record.privacy["rounds_left"] for record in done] == [1, 0]
    assert done[0].spent().endswith(" at δ 0.001, 1 more round")
    assert done[1].spent().endswith(", 0 more rounds")
    assert len(events_of(out)) == 2
    assert any(isinstance(e, Notice) and "privacy budget" in e.text for e in events)
    resume(out)  # nor does another try
    assert len(events_of(out)) == 2


def test_noise_of_the_system_is_another_each_time_and_that_of_the_seed_is_told(file, tmp_path):
    first, _ = run(file, tmp_path / "a")
    other, _ = run(file, tmp_path / "b")
    assert first["adapter_sha256"] != other["adapter_sha256"]
    one, told = run(file, tmp_path / "c", "privacy.noise=reproducible")
    again, _ = run(file, tmp_path / "d", "privacy.noise=reproducible")
    assert one["adapter_sha256"] == again["adapter_sha256"]
    assert one["privacy"]["reproducible"]
    assert any(isinstance(e, Notice) and "no privacy" in e.text for e in told)
    assert "no privacy" in (tmp_path / "c" / "report.html").read_text()


def test_nothing_is_drawn_or_leaves_before_its_event_is_on_disk(file, tmp_path, monkeypatch):
    """A full disk: neither noise nor release, else the sum would leave unpaid, or under two noises."""
    drawn = []

    def full(self, event):
        raise StorageError("disk", expected="room", got="none")

    monkeypatch.setattr(releases.Ledger, "append", full)
    monkeypatch.setattr(private_sum, "discrete_gaussian", lambda *given: drawn.append(given))
    with pytest.raises(StorageError, match="disk"):
        run(file, tmp_path / "run")
    assert not drawn
    assert not RunFolder(tmp_path / "run").release.exists()


@pytest.mark.parametrize("noise", ["system", "reproducible"])
def test_a_crash_after_the_release_releases_nothing_twice(file, tmp_path, monkeypatch, noise):
    """It dies while the round is closed: the next process takes what was drawn, and pays once."""
    out, made = tmp_path / "run", []
    whole = releases.Releases.once

    def once(self, *args):
        made.append(whole(self, *args).delta.sha256())
        if len(made) == 2:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(releases.Releases, "once", once)
    with pytest.raises(KeyboardInterrupt):
        run(file, out, f"privacy.noise={noise}")
    monkeypatch.undo()
    paid = events_of(out)
    assert [event.round for event in paid] == [1, 2]
    taken = []

    def second(self, *args):
        merged = whole(self, *args)
        taken.append(merged.delta.sha256())
        return merged

    monkeypatch.setattr(releases.Releases, "once", second)
    resume(out)
    assert taken[0] == made[1]
    assert events_of(out)[:2] == paid
    assert [event.round for event in events_of(out)] == [1, 2, 3, 4]


def test_a_crash_between_ledger_and_noise_is_paid_again(file, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def full(path, *data, **options):
        raise StorageError("full")

    monkeypatch.setattr(releases, "write_atomically", full)
    with pytest.raises(StorageError):
        run(file, out)
    monkeypatch.undo()
    assert len(events_of(out)) == 1
    resume(out)
    assert [event.round for event in events_of(out)] == [1, 1, 2, 3, 4]


def test_a_ledger_that_cannot_be_written_releases_nothing(file, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def full(self, event):
        raise StorageError("full")

    monkeypatch.setattr(Ledger, "append", full)
    with pytest.raises(StorageError):
        run(file, out)
    assert not RunFolder(out).release.exists()
    assert len(records(out)) == 1


def test_a_run_goes_back_and_its_ledger_does_not(file, tmp_path, monkeypatch):
    """The last two rounds are lost with their checkpoint; what they told is not."""
    out = tmp_path / "run"
    saved = checkpoints_of(out, monkeypatch)
    run(file, out)
    RunFolder(out).checkpoint.write_bytes(saved[2])
    resume(out)
    assert [event.round for event in events_of(out)] == [1, 2, 3, 4, 3, 4]
    assert records(out)[-1].privacy["epsilon"] > price(events_of(out)[:4], DELTA, "add-or-remove").epsilon


def test_adaptive_clipping_moves_the_bound_and_outlives_a_stop(file, tmp_path):
    out = tmp_path / "run"
    tables = ("privacy.adaptive.count_noise=1.0", "privacy.noise=reproducible")
    whole, _ = run(file, tmp_path / "whole", *tables)
    clips = [event.clip for event in events_of(tmp_path / "whole")]
    assert len(set(clips)) == 4
    run(file, out, *tables, should_stop=lambda: len(RunFolder(out).read_rounds()) > 2)
    again, _ = resume(out)
    assert again["adapter_sha256"] == whole["adapter_sha256"]
    assert [event.clip for event in events_of(out)] == clips


def test_a_round_that_draws_nobody_is_a_round(file, tmp_path):
    run(file, tmp_path / "run", "cohort.clients_per_round=1", "cohort.population=100000")
    asked = [len(record.clients) for record in records(tmp_path / "run")[1:]]
    assert asked == [0, 0, 0, 0]
    assert all(record.merge["noise_std"] > 0 for record in records(tmp_path / "run")[1:])


def test_a_fixed_cohort_is_priced_as_one_and_needs_its_population(file, tmp_path):
    run(file, tmp_path / "run", "cohort.sampling=fixed", "cohort.min_clients=8")
    events = events_of(tmp_path / "run")
    assert {(e.sampling.size, e.sampling.population) for e in events} == {(2, 8)}
    assert {record.privacy["relation"] for record in records(tmp_path / "run")[1:]} == {"replace-one"}
    assert [len(record.clients) for record in records(tmp_path / "run")[1:]] == [2, 2, 2, 2]


def test_a_damaged_release_stops_the_run(file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    whole = releases.Releases.once

    def once(self, *args):
        whole(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(releases.Releases, "once", once)
    with pytest.raises(KeyboardInterrupt):
        run(file, out)
    monkeypatch.undo()
    path = RunFolder(out).release
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="release"):
        resume(out)


def test_a_checkpoint_keeps_bound_and_noise(file, tmp_path):
    out = tmp_path / "run"
    run(file, out)
    folder, loaded, _ = RunFolder.open(out)
    from headwater.training.context import TrainingContext

    checkpoint = Checkpoint.load(folder.checkpoint, TrainingContext.open(loaded).spec, loaded.run_id())
    assert (checkpoint.server.privacy.clip, checkpoint.server.privacy.multiplier) == (0.5, 1.0)
