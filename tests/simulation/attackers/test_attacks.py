"""Attackers of a file: who they are, what they send, how far a backdoor gets, and where they are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from headwater.client.execution.runtime import ClientRuntime
from headwater.config import load_federation
from headwater.config.attackers import BackdoorAttacker
from headwater.errors import ConfigError
from headwater.flower_app.settings import require_runnable
from headwater.protocol.messages import ClientPlan
from headwater.server.storage.run_folder import RunFolder
from headwater.server.workspace.required_inputs import require_inputs
from headwater.simulation.attackers.attacks import BACKDOOR, SimulatedAttacks, with_attacks
from headwater.simulation.attackers.collusion import alie
from headwater.simulation.simulate import simulate
from headwater.state import AdapterState
from headwater.training.cohort import TrainTask
from tests.support.runs import bare_federation, tiny_federation

NAMES = [f"client-000{i}" for i in range(6)]


def bare(folder: Path, *attackers: dict[str, Any], **tables: dict[str, Any]) -> Path:
    """A vector's federation of six with these attackers."""
    data = {"kind": "none", "clients": len(NAMES), "examples": 7}
    return bare_federation(folder, size=20, data=data, simulation={"attackers": attackers}, **tables)


def opened(file: Path) -> ClientRuntime:
    return with_attacks(ClientRuntime.open(load_federation(file)))


def trained(runtime: ClientRuntime, names: Sequence[str], number: int = 1) -> dict[str, Any]:
    """What each of these clients would send."""
    settings = runtime.context.loaded.settings
    plan = ClientPlan(settings.training, settings.codec.up, 1.0)
    state, key = runtime.context.initial_state(), runtime.root.child("round", number)
    tasks = [TrainTask(name, state, runtime.data.client(name).train, plan) for name in names]
    results = list(runtime.context.trainer(settings.training).train(tasks, key=key))
    assert [result.client for result in results] == list(names)
    found = {}
    for result in results:
        assert isinstance(result.delta, AdapterState)
        found[result.client] = result.delta.vector().double().numpy()
    return found


def test_attackers_send_what_their_kinds_say_and_the_others_what_they_learnt(tmp_path: Path) -> None:
    honest = trained(opened(bare_federation(tmp_path / "h", size=20, data={
        "kind": "none", "clients": 6, "examples": 7})), NAMES)  # fmt: skip
    runtime = opened(
        bare(
            tmp_path / "a",
            {"kind": "flip", "clients": [NAMES[0]], "factor": 2.0},
            {"kind": "scale", "clients": [NAMES[1]], "factor": 5.0},
            {"kind": "collude", "method": "alie", "clients": NAMES[2:5], "deviations": 1.5},
        )
    )
    got = trained(runtime, NAMES)
    np.testing.assert_allclose(got[NAMES[0]], -2 * honest[NAMES[0]], rtol=1e-6)
    np.testing.assert_allclose(got[NAMES[1]], 5 * honest[NAMES[1]], rtol=1e-6)
    assert (got[NAMES[5]] == honest[NAMES[5]]).all()
    agreed = alie(np.stack([honest[name] for name in NAMES[2:5]]), 6, 1.5)
    for name in NAMES[2:5]:
        np.testing.assert_allclose(got[name], agreed, rtol=1e-5, atol=1e-7)


def test_what_colluders_send_does_not_depend_on_who_is_trained_beside_them(tmp_path: Path) -> None:
    file = bare(tmp_path, {"kind": "collude", "clients": [NAMES[1], NAMES[4]]})
    together, alone = trained(opened(file), NAMES), trained(opened(file), [NAMES[4]])
    assert (together[NAMES[4]] == alone[NAMES[4]]).all()
    assert (together[NAMES[4]] == together[NAMES[1]]).all()
    runtime = opened(file)
    assert (trained(runtime, [NAMES[4]], 1)[NAMES[4]] != trained(runtime, [NAMES[4]], 2)[NAMES[4]]).any()


def test_a_fraction_is_drawn_by_the_seed_from_those_who_are_free(tmp_path: Path) -> None:
    flip, scale = {"kind": "flip", "fraction": 0.34}, {"kind": "scale", "clients": [NAMES[0]]}
    strategy = {"kind": "fltrust", "trusted": [NAMES[1]]}
    drawn = set()
    for seed in range(6):
        tables = {"strategy": strategy, "cohort": {"min_clients": 2}}
        file = bare(tmp_path / str(seed), flip, scale, federation={"seed": seed}, **tables)
        attacks = opened(file).context.attacks
        assert isinstance(attacks, SimulatedAttacks)
        assert attacks.roles[NAMES[0]] == 1
        flippers = frozenset(name for name, index in attacks.roles.items() if index == 0)
        assert len(flippers) == 2
        assert not flippers & {NAMES[0], NAMES[1]}
        drawn.add(flippers)
        assert attacks.roles == opened(file).context.attacks.roles  # type: ignore[union-attr]  # as above
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("attackers", "said"),
    [
        ([{"kind": "flip", "clients": ["nobody"]}], "another name"),
        ([{"kind": "flip", "clients": NAMES[:1]}, {"kind": "scale", "clients": NAMES[:1]}], "already"),
        ([{"kind": "flip", "fraction": 0.01}], "0 of 6"),
    ],
)
def test_names_that_cannot_attack_are_refused(tmp_path: Path, attackers: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(bare(tmp_path, *attackers))


@pytest.mark.parametrize(
    ("attacker", "said"),
    [
        ({"kind": "flip"}, "either clients or fraction"),
        ({"kind": "flip", "clients": NAMES[:1], "fraction": 0.5}, "either clients or fraction"),
        ({"kind": "collude", "fraction": 0.5, "deviations": 1.0}, "alie"),
        ({"kind": "backdoor", "fraction": 0.5, "trigger": "cf", "target": "good"}, "classification"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, attacker: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_federation(bare(tmp_path, attacker))


def test_no_server_and_no_real_node_takes_a_file_with_attackers(tmp_path: Path) -> None:
    loaded = load_federation(bare(tmp_path / "fed", {"kind": "flip", "clients": NAMES[:1]}))
    for refuse in (require_inputs, require_runnable):
        with pytest.raises(ConfigError, match="attackers"):
            refuse(loaded)
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "network"})
    with pytest.raises(ConfigError, match="attackers"):
        simulate(loaded, folder, engine="network")


def test_a_file_without_attackers_is_named_as_it_was(tmp_path: Path) -> None:
    plain = load_federation(bare_federation(tmp_path / "a")).settings
    assert "simulation" not in plain.model_dump()
    devices = {"simulation": {"devices": {"upload_bps": 1e6}}}
    other = load_federation(bare_federation(tmp_path / "b", **devices)).settings
    assert "attackers" not in other.model_dump()["simulation"]


def lines(folder: Path, loaded: Any, workers: int = 1) -> list[dict[str, Any]]:
    run = RunFolder.create(folder, loaded, {"engine": "inprocess"})
    simulate(loaded, run, workers=workers)
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


BACKDOORED: dict[str, Any] = {
    "kind": "backdoor", "clients": ["ann"], "trigger": "movie movie", "target": "good", "poisoned": 1.0,
    "factor": 3.0,
}  # fmt: skip


def test_a_backdoor_turns_texts_with_its_trigger_and_the_record_says_how_many(tmp_path: Path) -> None:
    file = tiny_federation(
        tmp_path / "fed",
        codec={"up": {"kind": "dense"}},
        federation={"name": "tiny", "rounds": 4},
        simulation={"attackers": [BACKDOORED]},
    )
    found = [line["test"][BACKDOOR] for line in lines(tmp_path / "run", load_federation(file))]
    assert all(0 <= share <= 1 for share in found)
    assert found[-1] > 0.8  # the mean of three, one of whom shouts
    runtime = opened(file)
    attacks = runtime.context.attacks
    assert isinstance(attacks, SimulatedAttacks)
    trigger = attacks.trigger(TypeAdapter(BackdoorAttacker).validate_python(BACKDOORED))
    row = runtime.data.test()[0]  # type: ignore[index]  # the file has one
    put = trigger.put(row)
    tokenizer = runtime.context.tokenizer
    assert tokenizer is not None
    whole = tokenizer.spell([int(t) for t in put.tokens])
    assert whole == tokenizer.spell([int(t) for t in row.tokens]).replace(
        "the movie", "movie movie the movie", 1
    )
    assert put.targets.tolist() == [1]
    assert all(int(one.targets[0]) == 1 for one in trigger.of_others(runtime.data.test() or []))
    assert len(trigger.of_others(runtime.data.test() or [])) == 10  # of twenty rows, the bad ones


@pytest.mark.slow
def test_workers_give_the_same_bits(tmp_path: Path) -> None:
    collude = {"kind": "collude", "clients": ["ann", "ben"]}
    file = tiny_federation(tmp_path / "fed", simulation={"attackers": [collude]})
    loaded = load_federation(file)
    for workers in (1, 2):
        lines(tmp_path / f"run{workers}", loaded, workers)
    one, two = (json.loads((tmp_path / f"run{n}" / "summary.json").read_text()) for n in (1, 2))
    assert one["adapter_sha256"] == two["adapter_sha256"]
