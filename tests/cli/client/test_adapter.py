"""``headwater client adapter``: what an owner gets is what the client was measured by, its own part in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from headwater.client.execution.held_states import StatesInFolder
from headwater.client.execution.own_part import own_spec
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import DirectoryStore, SharedStore
from headwater.config import load_federation
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from tests.support.command import headwater
from tests.support.runs import run, tiny_federation

OWN = {"fedsa": {"strategy": {"kind": "mean", "space": "fedsa"}}, "heads": {"adapter": {"head": "own"}}}


@pytest.fixture(scope="module", params=OWN)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The federation's folder and that of a run."""
    folder = tmp_path_factory.mktemp("own")
    file = tiny_federation(folder / "fed", codec={"up": {"kind": "dense"}}, **OWN[request.param])
    file.write_text(file.read_text().replace('test = "test.jsonl"\n', ""))
    run(file, folder / "run")
    return folder / "fed", folder / "run"


def loss_in_peft(base: Path, folder: Path, examples: list) -> float:
    """The mean cross-entropy of the folder in plain PEFT, mean pooling and the head that lies beside it."""
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
    head, losses = load_file(folder / "head.safetensors"), []
    for example in examples:
        tokens = torch.from_numpy(example.tokens).long()[None]
        with torch.no_grad():
            hidden = peft(tokens, torch.ones_like(tokens)).last_hidden_state
        logits = hidden.mean(1) @ head["weight"].T + head["bias"]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(example.targets)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("name", ["ann", "ben"])
def test_a_simulated_clients_folder_gives_the_loss_that_it_answered(
    made: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    fed, folder = made
    done = headwater("client", "adapter", folder, "--name", name, "--out", tmp_path / name)
    assert "own part is of round 3" in done.out
    told = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])["clients_each"][name]
    examples = ClientRuntime.open(load_federation(fed / "federation.toml")).data.client(name).validation
    assert loss_in_peft(fed / "bert", tmp_path / name, examples) == pytest.approx(told["loss"], abs=1e-5)
    shared = loss_in_peft(fed / "bert", folder / "adapter", examples)
    assert abs(shared - told["loss"]) > 1e-3, "the adapter of all is not the client's"


def test_a_devices_folder_is_that_of_its_part_and_what_the_server_sent_last(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    fed, folder = made
    headwater("client", "adapter", folder, "--name", "ann", "--out", tmp_path / "simulated")
    kept, loaded, _ = RunFolder.open(folder)
    runtime = ClientRuntime.open(loaded)
    final = Checkpoint.load(kept.checkpoint, runtime.context.spec, loaded.run_id()).server.state
    device = tmp_path / "state" / "runs" / "r1"
    device.mkdir(parents=True)
    said = {
        "federation": loaded.settings.model_dump_json(),
        "model_sha256": runtime.context.base_sha256,
        "examples": 9,
    }
    (device / "federation.json").write_text(json.dumps(said))
    own = SharedStore(kept.clients).load_own("ann", own_spec(final.spec, loaded.settings.own_part))
    DirectoryStore(device).save_own("ann", own)
    states = StatesInFolder(device, durable=True)
    for state in (final, runtime.context.initial_state(), final):  # the last is sent again
        states.put(state, state.sha256())
    agent = tmp_path / "agent.toml"
    agent.write_text(
        f'name = "ann"\nserver = "example.org:8443"\nstate = "state"\n[data]\npath = "{fed}/train.jsonl"\n'
        f'[models]\nfolders = ["{fed}"]\n'
    )
    headwater("client", "adapter", agent, "--out", tmp_path / "device")
    for file in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "device" / file).read_bytes() == (tmp_path / "simulated" / file).read_bytes()
    (next(path for path in device.glob("*.state") if path.stem in final.sha256())).write_bytes(b"damaged")
    wrong = headwater("client", "adapter", agent, "--out", tmp_path / "again")
    assert "a damaged file" in wrong.error
    assert not (tmp_path / "again").exists()


def test_who_has_no_part_is_told(made: tuple[Path, Path], tmp_path: Path) -> None:
    wrong = headwater("client", "adapter", made[1], "--name", "eve", "--out", tmp_path / "x")
    assert "one that has trained in this run" in wrong.error
    wrong = headwater("client", "adapter", made[1], "--out", tmp_path / "x")
    assert "--name, which client" in wrong.error
