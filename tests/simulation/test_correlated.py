"""Whole runs with correlated noise: one sequence is paid, owners have turns, whatever ends and goes on."""

from __future__ import annotations

import pytest

from headwater.errors import FederationStopped
from headwater.privacy.accounting import price
from headwater.privacy.events import PositionReleased, SequenceReleased
from headwater.privacy.ledger import Ledger
from headwater.server.events import Waiting
from headwater.server.rounds import releases
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.resume import change_run
from headwater.simulation.simulate import simulate
from headwater.training.context import TrainingContext
from tests.support.runs import bare_federation, checkpoints_of, resume, run

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
DELTA, ROUNDS, OWNERS, APART = 1e-3, 4, 8, 3


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return bare_federation(
        tmp_path_factory.mktemp("f"),
        size=50,
        federation={"rounds": ROUNDS},
        data={"clients": OWNERS},
        strategy={"kind": "mean", "weighting": "equal"},
        codec={"up": {"kind": "dense"}},
        cohort={"clients_per_round": 2, "population": OWNERS, "min_clients": 2},
        privacy={
            "clip_l2": 0.5,
            "epsilon": 4.0,
            "delta": DELTA,
            "mechanism": "banded",
            "min_separation": APART,
        },
    )


def events_of(out):
    return Ledger(RunFolder(out).ledger).events


def sequences(out):
    return [event for event in events_of(out) if isinstance(event, SequenceReleased)]


def positions(out):
    ids = [event.release for event in sequences(out)]
    return [(ids.index(e.sequence) + 1, e.step) for e in events_of(out) if isinstance(e, PositionReleased)]


def asked(out):
    return [set(record.clients) for record in RunFolder(out).read_rounds()[1:]]


def require_turns(out):
    for at, names in enumerate(asked(out)):
        assert len(names) == 2
        assert not names & set().union(*asked(out)[max(0, at - APART + 1) : at])


@pytest.mark.parametrize("kind", ["tree", "banded", "blt"])
def test_one_sequence_is_paid_and_owners_have_turns(file, tmp_path, kind):
    out = tmp_path / "run"
    summary, _ = run(file, out, f"privacy.mechanism={kind}")
    assert summary["stopped"] == "rounds"
    (event,) = sequences(out)
    assert event.mechanism.kind == kind
    assert (event.participation.rounds, event.participation.separation) == (ROUNDS, APART)
    assert positions(out) == [(1, step) for step in range(1, ROUNDS + 1)]
    spent = price([event], DELTA, "zero-out").epsilon
    assert 3.9 < spent <= 4.0
    assert [r.privacy["epsilon"] for r in RunFolder(out).read_rounds()[1:]] == [spent] * ROUNDS
    left = [record.privacy.get("rounds_left") for record in RunFolder(out).read_rounds()[1:]]
    assert left == [3, 2, 1, None]
    assert summary["privacy"]["relation"] == "zero-out"
    require_turns(out)
    page = (out / "report.html").read_text()
    assert "for all updates of one owner set to nothing" in page


def test_a_run_without_memory_between_rounds_is_one(file, tmp_path):
    """Owners who may be in every round: the banded matrix is the identity, and keeps no vector."""
    run(file, tmp_path / "run", "privacy.mechanism=banded", "privacy.min_separation=1")
    assert sequences(tmp_path / "run")[0].mechanism.bands == (1.0,)
    assert positions(tmp_path / "run") == [(1, step) for step in range(1, ROUNDS + 1)]


def test_stopped_anywhere_it_comes_to_the_same_bits(file, tmp_path, monkeypatch):
    """It dies after each release, before anybody has heard of it."""
    whole, _ = run(file, tmp_path / "whole", "privacy.noise=reproducible")
    out, once = tmp_path / "run", releases.Releases.once

    def dies(self, *args):
        once(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(releases.Releases, "once", dies)
    with pytest.raises(KeyboardInterrupt):
        run(file, out, "privacy.noise=reproducible")
    for _ in range(ROUNDS - 1):
        monkeypatch.undo()
        made = []

        def second(self, *args, made=made):
            merged = once(self, *args)
            if made:
                raise KeyboardInterrupt
            made.append(merged)
            return merged

        monkeypatch.setattr(releases.Releases, "once", second)
        with pytest.raises(KeyboardInterrupt):
            resume(out)
    monkeypatch.undo()
    summary, _ = resume(out)
    assert summary["adapter_sha256"] == whole["adapter_sha256"]
    assert positions(out) == [(1, step) for step in range(1, ROUNDS + 1)]


def test_an_older_checkpoint_begins_another_sequence_and_the_budget_ends_the_run(file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    saved = checkpoints_of(out, monkeypatch)
    run(file, out)
    RunFolder(out).checkpoint.write_bytes(saved[2])
    before = events_of(out)
    summary, _ = resume(out)
    assert (summary["stopped"], summary["rounds"]) == ("privacy", 2)
    assert events_of(out) == before


def test_without_a_budget_it_is_paid_and_turns_still_hold(file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    saved = checkpoints_of(out, monkeypatch)
    file.with_name("free.toml").write_text(
        file.read_text().replace("epsilon = 4.0", "noise_multiplier = 1.0")
    )
    run(file.with_name("free.toml"), out)
    RunFolder(out).checkpoint.write_bytes(saved[2])
    resume(out)
    assert positions(out) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]
    spent = RunFolder(out).read_rounds()[-1].privacy["epsilon"]
    assert spent == price(sequences(out), DELTA, "zero-out").epsilon
    assert spent > 1.3 * price(sequences(out)[:1], DELTA, "zero-out").epsilon
    require_turns(out)


def test_rounds_that_are_added_end_at_the_budget(file, tmp_path):
    out = tmp_path / "run"
    run(file, out)
    folder, loaded, _ = RunFolder.open(out)
    loaded, _ = change_run(folder, loaded, ["federation.rounds=6"])
    summary = simulate(loaded, folder, observer=lambda event: None)
    assert (summary["stopped"], summary["rounds"]) == ("privacy", ROUNDS)
    assert len(sequences(out)) == 1


def test_a_simulation_with_too_few_owners_ends_and_says_who_may_be_asked_when(file, tmp_path):
    with pytest.raises(FederationStopped, match=r"round 3: .*may be again from round 4 on") as error:
        run(file, tmp_path / "run", "data.clients=4")
    assert "got 0; not client-0000 (was asked in round" in str(error.value)
    assert positions(tmp_path / "run") == [(1, 1), (1, 2)]  # no round of nobody was spent


CHURN = (
    'simulation.devices={tokens_per_s=1.0,availability={kind="churn",online_s=30.0,offline_s=30.0}}',
    "cohort.deadline_s=60.0",
)


def test_on_devices_that_come_and_go_a_round_waits_for_whom_it_may_ask(file, tmp_path):
    _, events = run(file, tmp_path / "run", *CHURN, "data.clients=6")
    require_turns(tmp_path / "run")
    assert any(
        "may be again from round" in name for e in events if isinstance(e, Waiting) for name in e.missing
    )


def test_on_devices_of_which_too_few_may_ever_be_asked_it_ends(file, tmp_path):
    """They come and go for ever, so that time alone would never end it."""
    with pytest.raises(FederationStopped, match=r"round 3: .*may be again from round 4 on"):
        run(file, tmp_path / "run", *CHURN, "data.clients=4")


def test_a_checkpoint_keeps_sequence_and_turns(file, tmp_path):
    out = tmp_path / "run"
    run(file, out)
    folder, loaded, _ = RunFolder.open(out)
    spec = TrainingContext.open(loaded).spec
    state = Checkpoint.load(folder.checkpoint, spec, loaded.run_id()).server.privacy
    (event,) = sequences(out)
    assert (state.sequence.mechanism, state.sequence.participation) == (event.mechanism, event.participation)
    counted = {}
    for number, names in enumerate(asked(out), 1):
        counted |= {name: (number, counted.get(name, (0, 0))[1] + 1) for name in names}
    assert state.asked == counted
