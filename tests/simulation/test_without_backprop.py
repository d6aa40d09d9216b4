"""Whole federations whose clients do not backpropagate, alone and mixed with those that do."""

from __future__ import annotations

from typing import Any

import pytest

from headwater.config import load_federation
from headwater.errors import FederationStopped
from headwater.security.public_keys import SIGNATURE_BYTES
from headwater.server.events import ClientDone, ClientFailed, RoundEnded
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from tests.simulation.test_simulate import Crash, rounds
from tests.support.runs import OWNERS, resume, run, tiny_federation

SHORT: dict[str, dict[str, Any]] = {
    "kseed": {"kind": "kseed", "seeds": 64, "max_steps": 4, "learning_rate": 1e-3},
    "decomfl": {"kind": "decomfl", "max_steps": 2, "directions": 2, "learning_rate": 1e-3},
    "mezo": {"kind": "mezo", "max_steps": 3, "learning_rate": 1e-3},
    "forward_gradient": {"kind": "forward_gradient", "max_steps": 2, "learning_rate": 1e-2},
    "spry": {"kind": "spry", "max_steps": 2, "learning_rate": 1e-2},
}
FEDERATIONS: dict[str, dict[str, Any]] = {name: {"training": table} for name, table in SHORT.items()}
FEDERATIONS["pro"] = {"training": {**SHORT["kseed"], "pro": True}}
FEDERATIONS["mixed"] = {
    "training": {"max_steps": 2},
    "methods": {
        "jvp": {"training": SHORT["forward_gradient"], "rank": 1},
        "seeds": {"training": SHORT["kseed"]},
    },
    "assignment": {"kind": "clients", "clients": {"ben": "jvp", "cleo": "seeds"}},
}
METHODS = {"ann": "default", "ben": "jvp", "cleo": "seeds"}
SEEDS_ONLY = ("kseed", "decomfl", "pro")


def written(tmp_path, name):
    return tiny_federation(tmp_path / "fed", **FEDERATIONS[name])


def states(folder):
    return [r["state_sha256"] for r in rounds(folder)]


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_whole_run_twice_and_once_with_a_stop(tmp_path, name):
    file = written(tmp_path, name)
    summary, events = run(file, tmp_path / "a")
    records = rounds(tmp_path / "a")
    assert [e for e in events if isinstance(e, ClientFailed)] == []
    assert summary["rounds"] == 3
    assert len(set(states(tmp_path / "a"))) == 4  # every round moved the adapter
    for record in records[1:]:
        assert set(record["clients"]) == set(OWNERS)
        assert record["test"]["accuracy"] >= 0
        assert set(record["clients_pooled"]) >= {"accuracy", "loss"}
        assert all(row["loss"] > 0 for row in record["clients"].values())
        if name == "mixed":
            assert {c: row["method"] for c, row in record["clients"].items()} == METHODS
        assert all(
            ("noise" in row) == (c != "ann" or name != "mixed") for c, row in record["clients"].items()
        )
        assert (record["gap"] is None) == (name in (*SEEDS_ONLY, "mixed"))
    page = (tmp_path / "a" / "report.html").read_text()
    assert ("Not measured with seeds" in page) == (name in (*SEEDS_ONLY, "mixed"))
    assert ("last method" in page) == (name == "mixed")

    again, _ = run(file, tmp_path / "b")
    assert again["adapter_sha256"] == summary["adapter_sha256"]
    assert states(tmp_path / "b") == states(tmp_path / "a")

    ended = []
    loaded = load_federation(file)
    folder = RunFolder.create(tmp_path / "c", loaded, {"engine": "inprocess"})
    simulate(
        loaded,
        folder,
        observer=lambda event: ended.append(event) if isinstance(event, RoundEnded) else None,
        should_stop=lambda: len(ended) > 1,
    )
    assert len(rounds(tmp_path / "c")) < 4
    finished, _ = resume(tmp_path / "c")
    assert finished["adapter_sha256"] == summary["adapter_sha256"]
    assert states(tmp_path / "c") == states(tmp_path / "a")


@pytest.mark.parametrize("name", ["kseed", "decomfl", "mixed"])
def test_a_crash_at_any_reply(tmp_path, name):
    file = written(tmp_path, name)
    run(file, tmp_path / "whole")
    for moment in (1, 3, 5, 8):
        seen = []

        def crash(event, seen=seen, moment=moment):
            if isinstance(event, ClientDone):
                seen.append(event)
                if len(seen) == moment:
                    raise Crash

        loaded, path = load_federation(file), tmp_path / str(moment)
        folder = RunFolder.create(path, loaded, {"engine": "inprocess"})
        with pytest.raises(Crash):
            simulate(loaded, folder, observer=crash)
        _, events = resume(path)
        assert [e for e in events if isinstance(e, ClientFailed)] == []
        assert states(path) == states(tmp_path / "whole")


@pytest.mark.slow
def test_workers_change_no_bit(tmp_path):
    for name in ("kseed", "mixed"):
        file = written(tmp_path / name, name)
        run(file, tmp_path / name / "a")
        _, events = run(file, tmp_path / name / "b", workers=2)
        assert [e for e in events if isinstance(e, ClientFailed)] == []
        assert states(tmp_path / name / "a") == states(tmp_path / name / "b")


def test_seeds_only_rounds_cost_a_few_kilobytes_whatever_the_adapter(tmp_path):
    """The whole signed update, the plan and the state of K = 4096, τ = 200; dense is 4 bytes a value."""
    training = {"kind": "kseed", "seeds": 4096, "max_steps": 200, "learning_rate": 1e-4, "batch_size": 2}
    file = tiny_federation(tmp_path / "fed", training=training)
    run(file, tmp_path / "run", "federation.rounds=3", "evaluation.every=0")
    sizes = []
    for record in rounds(tmp_path / "run")[1:]:
        for row in record["clients"].values():
            assert row["steps"] == 200
            sizes.append(row["bytes_up"] + SIGNATURE_BYTES + row["bytes_down"])
    assert max(sizes) < 17_984
    assert max(sizes) < 4_000  # of which most is what three clients changed, on its way down


def test_after_an_absence_a_client_is_sent_what_it_lacks(tmp_path):
    file = written(tmp_path, "kseed")
    _, events = run(
        file, tmp_path / "run", "federation.rounds=12", "cohort.clients_per_round=1", "evaluation.every=4"
    )
    assert [e for e in events if isinstance(e, ClientFailed)] == []
    asked = [set(r["clients"]) for r in rounds(tmp_path / "run")[1:]]
    assert set.union(*asked) == set(OWNERS)


def test_a_round_within_a_time_is_planned_by_measured_steps(tmp_path):
    """Devices time their methods when they introduce themselves; what is too slow is cut or skipped."""
    tables: dict[str, Any] = {
        "training": {"max_steps": 3},
        "methods": {"seeds": {"training": SHORT["kseed"]}},
        "assignment": {"kind": "planner", "round_s": 600.0},
    }
    _, events = run(tiny_federation(tmp_path / "fed", **tables), tmp_path / "a")
    assert [e for e in events if isinstance(e, ClientFailed)] == []
    for record in rounds(tmp_path / "a")[1:]:
        assert {row["method"] for row in record["clients"].values()} == {"default"}
        assert {c: row["steps"] for c, row in record["clients"].items()} == {"ann": 3, "ben": 2, "cleo": 2}
    tables["assignment"]["round_s"] = 1e-6
    with pytest.raises(FederationStopped, match="clients"):
        run(tiny_federation(tmp_path / "fast", **tables), tmp_path / "b")
