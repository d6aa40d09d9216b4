"""A simulated run under masks has the bits of the same run without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headwater.errors import EmptyRound, UpdateRejected
from headwater.server.rounds import base
from headwater.server.rounds.masked_round import MaskedRound
from headwater.server.rounds.open_round import OpenRound
from tests.strategies.test_federated import federation
from tests.support.runs import bare_federation, resume, run, tiny_federation

MASKS: dict[str, Any] = {"privacy": {"masks": True, "mask_dropouts": 0.34}, "cohort": {"min_clients": 3}}


def plainly(*given: Any) -> OpenRound:
    """The round that a masked one is, without masks: units are the plan's, and so the same."""
    return OpenRound(*given[:6])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def states(folder: Path) -> list[str]:
    return [record["state_sha256"] for record in records(folder)]


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"codec": {"up": {"kind": "randk", "density": 0.2}}},
        {"strategy": {"kind": "ties", "space": "ffa"}},
        {"strategy": {"kind": "fisher", "space": "ffa", "examples": 8}},
        {"training": {"kind": "kseed", "seeds": 64, "max_steps": 4, "learning_rate": 1e-3}},
        {"strategy": {"kind": "mean", "server_optimizer": "adam", "server_learning_rate": 0.01}},
    ],
    ids=["mean", "randk", "ties", "fisher", "coefficients", "adam"],
)
def test_masked_bits_are_those_without(
    tmp_path: Path, tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_federation(tmp_path / "fed", **MASKS, **tables)
    summary, _ = run(file, tmp_path / "masked")
    monkeypatch.setattr(base, "MaskedRound", plainly)
    run(file, tmp_path / "plain")
    assert states(tmp_path / "masked") == states(tmp_path / "plain")
    assert len(set(states(tmp_path / "masked"))) == 4
    assert not summary["failures"]
    rows = [row for record in records(tmp_path / "masked")[1:] for row in record["clients"].values()]
    assert all("examples" in row for row in rows)
    # an update's energy, and the length of what its Fisher compresses to, are of one update alone
    assert not any(row.keys() & {"noise", "bytes_fisher"} for row in rows)


def test_workers_mask_to_the_same_bits(tmp_path: Path) -> None:
    file = bare_federation(tmp_path / "fed", **MASKS)
    run(file, tmp_path / "alone", "federation.rounds=1")
    run(file, tmp_path / "two", "federation.rounds=1", workers=2)
    assert states(tmp_path / "two") == states(tmp_path / "alone")
    assert len(set(states(tmp_path / "two"))) == 2


def losing(client: str, rounds: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client's update of these rounds be lost after its keys and shares are there."""
    for kind in (OpenRound, MaskedRound):
        add = kind._add

        def lost(self: Any, update: Any, add: Any = add) -> None:
            if update.client == client and self.plan.round in rounds:
                raise UpdateRejected(f"client {client}", expected="to be there", got="gone")
            add(self, update)

        monkeypatch.setattr(kind, "_add", lost)


def test_a_client_that_drops_out_is_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"cohort": {"min_clients": 3}, "data": {"kind": "none", "clients": 5, "examples": 7}}
    file = bare_federation(tmp_path / "fed", **(MASKS | owners))
    names = sorted(records_of(file, tmp_path))
    losing(names[1], {2}, monkeypatch)
    run(file, tmp_path / "masked")
    monkeypatch.setattr(base, "MaskedRound", plainly)
    run(file, tmp_path / "plain")
    assert states(tmp_path / "masked") == states(tmp_path / "plain")
    assert "failed" in records(tmp_path / "masked")[2]["clients"][names[1]]


def records_of(file: Path, folder: Path) -> dict[str, Any]:
    """The clients of a run's first round."""
    run(file, folder / "first")
    clients: dict[str, Any] = records(folder / "first")[1]["clients"]
    return clients


def test_too_many_drop_outs_end_the_round_and_it_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {"cohort": {"min_clients": 3}, "data": {"kind": "none", "clients": 5, "examples": 7}}
    file = bare_federation(tmp_path / "fed", **(MASKS | tables))
    wanted = records_of(file, tmp_path)
    first, second = sorted(wanted)[:2]
    with monkeypatch.context() as patch:
        losing(first, {2}, patch)
        losing(second, {2}, patch)
        with pytest.raises(EmptyRound, match="masked sum of round 2"):
            run(file, tmp_path / "run")
    summary, _ = resume(tmp_path / "run")
    assert summary["rounds"] == 3
    assert states(tmp_path / "run") == states(tmp_path / "first")


def test_the_record_has_no_gap_and_true_bytes(tmp_path: Path) -> None:
    file = bare_federation(tmp_path / "fed", **MASKS)
    run(file, tmp_path / "run")
    record = records(tmp_path / "run")[1]
    assert record["gap"] is None
    for row in record["clients"].values():  # 2,000 values of at most 47 bits, keys, shares, signatures
        assert 2000 * 5 < row["bytes_up"] < 2000 * 6 + 2000


@pytest.mark.parametrize(
    ("match", "tables"),
    [
        ("strategy 'mean', 'ties' or 'fisher'", {"strategy": {"kind": "median"}}),
        ("strategy 'mean', 'ties' or 'fisher'", {"strategy": {"kind": "pcb"}}),
        ("outside products", {"strategy": {"kind": "mean", "space": "product"}}),
        ("needs rounds", {"schedule": {"kind": "buffered", "buffer": 3}}),
        ("norm_bound", {"strategy": {"kind": "mean", "norm_bound": 1.0}}),
        ("at least 3", {"cohort": {"min_clients": 2}}),
        (
            "ef21",
            {
                "codec": {"up": {"kind": "topk", "error_feedback": "ef21"}},
                "strategy": {"kind": "mean", "weighting": "equal"},
            },
        ),
    ],
)
def test_what_needs_single_updates_is_refused(match: str, tables: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=match):
        federation(**(MASKS | tables))


@pytest.mark.slow
def test_a_network_of_agents_masks_to_the_same_bits(tmp_path: Path) -> None:
    file = bare_federation(tmp_path / "fed", **MASKS)
    summary, _ = run(file, tmp_path / "network", engine="network")
    run(file, tmp_path / "masked")
    assert states(tmp_path / "network") == states(tmp_path / "masked")
    assert not summary["failures"]
