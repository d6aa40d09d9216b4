"""Runs of a bare vector on simulated devices: :func:`run_devices`, and whole ones, :func:`simulated`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.config import load_federation
from headwater.server.clients.run_control import RunControl
from headwater.server.rounds.federation_server import FederationServer
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.devices.world import open_world
from headwater.simulation.grid import InProcessGrid
from headwater.simulation.simulate import simulate
from headwater.training.context import TrainingContext
from tests.support.runs import bare_federation

_MEMORY = Path("/dev/shm")
"""Where there is one: a disk is what such a run takes longest for."""


def run_devices(
    devices: dict[str, Any], *, clients: int = 4, rounds: int = 2, size: int = 20, **tables: Any
) -> list[dict[str, Any]]:
    """The rounds of such a run, without baselines, report and what this machine's clock says."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as place:
        loaded = load_federation(_written(Path(place), devices, clients, rounds, tables, size))
        folder = RunFolder.create(Path(place) / "run", loaded, {"engine": "inprocess"})
        context = TrainingContext.open(loaded)
        runtime = ClientRuntime.open(loaded, context)
        world = open_world(loaded, runtime, folder)
        control = world.control(RunControl(lambda event: None))
        server = FederationServer(loaded, runtime.run, context, folder, test=None, control=control)
        names = runtime.data.clients
        world.run(server, InProcessGrid(names, runtime, MemoryStore()), owners=names)
        return told(folder)


def simulated(
    folder: Path,
    devices: dict[str, Any],
    *,
    clients: int,
    rounds: int,
    workers: int = 1,
    size: int = 20,
    **tables: Any,
) -> list[dict[str, Any]]:
    """The same of a whole run, from its file to its report."""
    loaded = load_federation(_written(folder, devices, clients, rounds, tables, size))
    run = RunFolder.create(folder / "run", loaded, {"engine": "inprocess"})
    simulate(loaded, run, workers=workers)
    return told(run)


def _written(
    place: Path,
    devices: dict[str, Any],
    clients: int,
    rounds: int,
    tables: dict[str, Any],
    size: int = 20,
) -> Path:
    tables = {"federation": {"rounds": rounds}, "data": {"clients": clients}, **tables}
    return bare_federation(place, size=size, simulation={"devices": devices}, **tables)


def told(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of a run's rounds, without what this machine's clock says."""
    rounds = [json.loads(record.line()) for record in folder.read_rounds()]
    for record in rounds:
        del record["seconds"]
        for row in record["clients"].values():
            row.pop("seconds", None)
    return rounds


def accepted(record: dict[str, Any]) -> set[str]:
    """Whose updates are in a round."""
    return {client for client, row in record["clients"].items() if "failed" not in row}


def took(record: dict[str, Any]) -> dict[str, float]:
    """By client, seconds from its request to its reply."""
    rows = {client: row["simulated"] for client, row in record["clients"].items()}
    return {client: round(row["end_s"] - row["asked_s"], 6) for client, row in rows.items()}
