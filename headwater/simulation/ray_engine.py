"""run_on_ray: the same server and the same client path on Flower's own simulation engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from headwater.client.app import client_app
from headwater.client.runtime import ClientRuntime, run_id
from headwater.client.store import ClientStore, DirectoryStore
from headwater.config import LoadedFederation
from headwater.errors import MissingDependency
from headwater.server.federation import FederationServer, Outcome


def run_on_ray(
    server: FederationServer, loaded: LoadedFederation, clients: Sequence[str], store: Path
) -> Outcome:
    """Run the federation with one Flower node per client, on as many Ray actors as CPUs allow.

    Raises:
        MissingDependency: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: F401 - only to say clearly that it is missing
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise MissingDependency(
            "engine ray", expected="Ray", got=str(error), hint='Install it: pip install "headwater[ray]"'
        ) from None
    result: list[Outcome] = []
    failure: list[BaseException] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            result.append(server.run(grid, len(clients)))
        except BaseException as error:  # Flower logs what its server thread raises and goes on
            failure.append(error)

    threads = loaded.settings.federation.threads
    run_simulation(
        server_app=app,
        client_app=client_app(_NodeOpener(loaded, tuple(clients), store)),
        num_supernodes=len(clients),
        backend_config={
            "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False, "log_to_driver": False},
        },
    )
    if failure:
        raise failure[0]
    return result[0]


class _NodeOpener:
    """Opens a node in whichever Ray actor it lands; the model and data load once per actor."""

    def __init__(self, loaded: LoadedFederation, clients: tuple[str, ...], store: Path) -> None:
        self._loaded, self._clients, self._store = loaded, clients, store

    def __call__(self, context: Context) -> tuple[str, ClientStore, ClientRuntime]:
        name = self._clients[int(context.node_config["partition-id"])]
        return name, DirectoryStore(self._store, durable=False), _runtime(self._loaded)


_opened: dict[str, ClientRuntime] = {}


def _runtime(loaded: LoadedFederation) -> ClientRuntime:
    run = run_id(loaded)
    if run not in _opened:
        _opened.clear()
        _opened[run] = ClientRuntime.open(loaded, check=False)
    return _opened[run]
