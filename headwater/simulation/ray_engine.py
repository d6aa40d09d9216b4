"""run_on_ray: the same server and the same client path on Flower's own simulation engine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from headwater.bits import environment, here
from headwater.client.execution.flower_app import client_app
from headwater.client.execution.runtime import ClientRuntime, run_id
from headwater.client.execution.store import ClientStore, SharedStore
from headwater.config import LoadedFederation
from headwater.errors import MissingDependency
from headwater.server.rounds.federation_server import RunResult
from headwater.simulation.attackers.attacks import with_attacks
from headwater.simulation.cohort_grid import CohortGrid
from headwater.simulation.cohort_record import CohortRecord
from headwater.simulation.workers import HANDLED_BY_PARENT, parent_handles_signals


def run_on_ray(
    loaded: LoadedFederation,
    runtime: ClientRuntime,
    store: Path,
    record: CohortRecord,
    interrupted: threading.Event,
    run: Callable[[Grid], RunResult],
) -> RunResult:
    """Run the federation on as many Ray actors as CPUs allow.

    With one Flower node per client, in Flower's own simulation; where clients are trained as one batch,
    on actors of ours (:mod:`.ray_pool`), which take whole batches.

    Args:
        loaded: the federation.
        runtime: of this process: who the clients are, and who is a batch.
        store: folder of what the clients keep.
        record: of the sizes of batches.
        interrupted: what the server asks whether the run is to end now; set when this ends.
        run: the server, called in a thread of Flower's, or in this one.

    Raises:
        MissingDependency: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own 15 leaves its workers a thirtieth of a core beside anybody's busy process
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray  # noqa: F401 - only to say clearly that it is missing
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise MissingDependency(
            "engine ray", expected="Ray", got=str(error), hint='Install it: pip install "headwater[ray]"'
        ) from None
    clients, threads = runtime.data.clients, loaded.settings.federation.threads
    if (cohort := runtime.cohort) > 1:
        from headwater.simulation.ray_pool import RayPool

        with _ray(interrupted), RayPool(loaded, store, cohort=cohort, most=len(clients)) as pool:
            return run(CohortGrid(clients, runtime, pool, record))
    result: list[RunResult] = []
    failure: list[BaseException] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            result.append(run(grid))
        except BaseException as error:  # Flower logs what its server thread raises and goes on
            failure.append(error)

    try:
        with _ray(interrupted):
            run_simulation(
                server_app=app,
                client_app=client_app(_NodeOpener(loaded, clients, store)),
                num_supernodes=len(clients),
                backend_config={"client_resources": {"num_cpus": threads, "num_gpus": 0.0}},
            )
    except RuntimeError:
        if not failure:  # else Flower tells that its server ended, and this one tells why
            raise
    finally:
        interrupted.set()  # a second Ctrl-C is in this thread: the server's must not go on
    if failure:
        raise failure[0]
    return result[0]


@contextmanager
def _ray(interrupted: threading.Event) -> Iterator[None]:
    """Ray, started here and not by Flower, for two things that Ray does to signals.

    Its processes are in this process's group: they must not end by a signal that asks this one to end after
    the open round. And it puts handlers of its own in place of this process's, which abort it on SIGTERM.

    A handler that raises, as at a second Ctrl-C, sets ``interrupted``. From then on Flower's log is not
    shown: it is about actors that were ended on purpose.
    """
    import ray

    log = logging.getLogger("flwr")

    def shown(record: logging.LogRecord) -> bool:
        return not interrupted.is_set()

    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ours = {number: signal.getsignal(number) for number in HANDLED_BY_PARENT}
    try:
        with parent_handles_signals():
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": path} | environment(here(), {})},  # as Flower does
            )
            if threading.current_thread() is threading.main_thread():
                for number, handler in ours.items():
                    if handler is not None:
                        signal.signal(number, _noting(handler, interrupted))
        log.addFilter(shown)
        yield
    finally:
        ray.shutdown()
        log.removeFilter(shown)
        if threading.current_thread() is threading.main_thread():
            for number, handler in ours.items():
                if handler is not None:
                    signal.signal(number, handler)


Handler: TypeAlias = Callable[[int, FrameType | None], object] | int


def _noting(handler: Handler, interrupted: threading.Event) -> Handler:
    """``handler``, which sets ``interrupted`` where it raises."""
    if not callable(handler):
        return handler

    def on_signal(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException:
            interrupted.set()
            raise

    return on_signal


class _NodeOpener:
    """Opens a node in whichever Ray actor it lands; the model and data load once per actor."""

    def __init__(self, loaded: LoadedFederation, clients: tuple[str, ...], store: Path) -> None:
        self._loaded, self._clients, self._store = loaded, clients, store

    def __call__(self, context: Context) -> tuple[str, ClientStore, ClientRuntime]:
        name = self._clients[int(context.node_config["partition-id"])]
        return name, *_opened_once(self._loaded, self._store)


_opened: dict[tuple[str, Path], tuple[ClientStore, ClientRuntime]] = {}


def _opened_once(loaded: LoadedFederation, store: Path) -> tuple[ClientStore, ClientRuntime]:
    """Of the run that this process works for."""
    run = run_id(loaded), store
    if run not in _opened:
        _opened.clear()
        _opened[run] = SharedStore(store), with_attacks(ClientRuntime.open(loaded, check=False))
    return _opened[run]
