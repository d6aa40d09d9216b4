"""``headwater client adapter``: a client's own adapter of a run in which clients keep a part."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.config.agent import load_agent
from headwater.config.load import LoadedFederation
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from headwater.client.execution.store import ClientStore
    from headwater.state import AdapterState
    from headwater.training.context import TrainingContext

_WHO = "headwater client adapter"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that only ``adapter`` has."""
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="adapter: where it goes: new, or empty")
    parser.add_argument(
        "--run", dest="run_id", metavar="RUN", help="adapter: of this run (default: the last)"
    )


def adapter(options: argparse.Namespace) -> int:
    """Write the folder; print where it is."""
    if options.config is None or options.out is None:
        raise ConfigError(
            _WHO, expected="the agent file or a simulation's run folder, and --out DIR", got="less"
        )
    from headwater.cli.server.exports import require_free

    require_free(options.out)
    if options.config.is_dir():
        client, number = _of_simulation(options.config, options.name, options.out)
    else:
        client, number = _of_device(options.config, options.run_id, options.out)
    print(f"{options.out}: the adapter of {client}, whose own part is of round {number}")
    return 0


def _of_simulation(path: Path, name: str | None, out: Path) -> tuple[str, int]:
    """From a run folder: what the server merged last, and what is kept for the client."""
    from headwater.client.execution.store import STORE_FILE, SharedStore
    from headwater.server.storage.checkpoint import Checkpoint
    from headwater.server.storage.run_folder import RunFolder

    folder, loaded, _ = RunFolder.open(path)
    _require_own(loaded)
    if name is None:
        raise ConfigError(_WHO, expected="--name, which client of the simulation", got="none")
    if not (folder.clients / STORE_FILE).is_file():
        raise ConfigError(
            f"run folder {path}",
            expected="what its clients keep, as a simulation in this process or on Ray leaves it",
            got="nothing",
            hint="Agents keep their own part themselves: give an agent's file in place of the run folder.",
        )
    context = _opened(loaded)
    checkpoint = Checkpoint.load(folder.checkpoint, context.spec, loaded.run_id())
    state = context.initial_state() if checkpoint is None else checkpoint.server.state
    return name, _write(context, loaded.run_id(), state, name, SharedStore(folder.clients), out)


def _of_device(path: Path, run: str | None, out: Path) -> tuple[str, int]:
    """From an agent's state folder: the state that the server sent last, and the device's own part."""
    from headwater.client.agent.known_runs import KnownRuns
    from headwater.client.agent.models import LocalModels
    from headwater.client.execution.held_states import StatesInFolder
    from headwater.client.execution.store import DirectoryStore

    settings = load_agent(path)
    runs = KnownRuns(settings.state / "runs")
    known = runs.runs()
    joined = runs.get(run or known[0]) if run or known else None
    if joined is None:
        raise ConfigError(
            f"{_WHO} {path}",
            expected="a run that this device has worked for",
            got=f"{run!r}; there are {', '.join(known)}" if run and known else "none",
        )
    _require_own(joined.loaded(None))
    models = settings.file.models
    local = LocalModels(settings.model_folders, models.allow, settings.state / "models.json")
    context = _opened(joined.loaded(local.find(joined.model_sha256)))
    state = StatesInFolder(joined.folder, durable=False).newest(context.spec) or context.initial_state()
    store = DirectoryStore(joined.folder, durable=False)  # whose temporary files are the agent's to remove
    name = settings.file.name
    return name, _write(context, joined.run, state, name, store, out)


def _require_own(loaded: LoadedFederation) -> None:
    if loaded.settings.own_part == "nothing":
        raise ConfigError(
            f"{_WHO}: federation {loaded.settings.federation.name}",
            expected="adapter.head 'own', or strategy.space 'fedsa', where a client has a part of its own",
            got="a federation whose clients share the whole adapter",
            hint="It is in the run folder's adapter/, or: headwater server adapters export",
        )


def _opened(loaded: LoadedFederation) -> TrainingContext:
    from headwater.training.context import TrainingContext

    return TrainingContext.open(loaded)


def _write(
    context: TrainingContext, run: str, state: AdapterState, client: str, store: ClientStore, out: Path
) -> int:
    """The round of the own part."""
    from headwater.client.execution.own_part import own_adapter

    own, number = own_adapter(client, state, store, context.loaded.settings.own_part)
    name = context.loaded.settings.federation.name
    context.export(own, out, {"federation": name, "run": run, "client": client, "adapter_round": number})
    return number
