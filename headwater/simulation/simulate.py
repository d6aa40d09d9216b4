"""simulate: a whole federation on one box, from its file to its run folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from headwater.client.execution.runtime import ClientRuntime, run_id
from headwater.client.execution.store import STORE_FILE, SharedStore
from headwater.config import LoadedFederation
from headwater.errors import ConfigError, StorageError
from headwater.server.clients.run_control import RunControl
from headwater.server.events import Notice, Observer
from headwater.server.rounds.federation_server import FederationServer, RunResult
from headwater.server.rounds.finish import finish, tell_trackers
from headwater.server.storage.run_folder import RunFolder
from headwater.server.trackers.tracking import Tracking
from headwater.simulation.attackers.attacks import with_attacks
from headwater.simulation.baselines import check_baselines, run_baselines
from headwater.simulation.cohort_choice import measured
from headwater.simulation.cohort_grid import CohortGrid
from headwater.simulation.cohort_record import NAME, CohortRecord
from headwater.simulation.devices.world import open_world
from headwater.simulation.grid import InProcessGrid, LocalGrid, WorkersGrid
from headwater.simulation.masking import SimulatedMasking
from headwater.simulation.workers import Prepare, WorkerPool
from headwater.simulation.workplace import ThisProcess
from headwater.tasks.batches import Example
from headwater.training.context import TrainingContext

Engine = Literal["inprocess", "ray", "network"]
Opening = Callable[[LoadedFederation], ClientRuntime]


def simulate(
    loaded: LoadedFederation,
    folder: RunFolder,
    *,
    engine: Engine = "inprocess",
    workers: int = 1,
    observer: Observer = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    opened: Opening | None = None,
    prepare: Prepare | None = None,
) -> dict[str, Any]:
    """Run what is left of a federation and write its run folder.

    Args:
        loaded: the federation file.
        folder: a new run folder, or one to go on with.
        engine: ``inprocess``, ``ray`` for Flower's own simulation, or ``network`` for a daemon and an
            agent per client as processes with TLS between them, without the file's baselines.
        workers: processes that train; 1 trains in this one. Ray decides by its own CPUs.
        observer: is told what happens.
        should_stop: asked often; True ends the run after the open round, with everything written.
        opened: gives this process's base model and data where it has them from an earlier run.
        prepare: is given what each process has opened, such as to let a script train there; engine
            ``inprocess`` alone.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        HeadwaterError: what is wrong with file, data or model, or that the federation cannot go on.
    """
    _require_a_simulation(loaded, engine)
    _require_simulated_clients(loaded, engine)
    _require_no_script(loaded, prepare)
    watched = Tracking(loaded.trackers, run_id(loaded), loaded.settings, folder.path, observer)
    loaded = replace(loaded, trackers=())  # no process but this one needs their packages
    with folder.locked(), watched as tracking:
        if engine == "network":
            from headwater.simulation.network_engine import run_on_network  # certificates, gRPC

            summary = run_on_network(loaded, folder, tracking, should_stop)
        else:
            control = RunControl(tracking.observe, should_stop)
            summary = _run_here(loaded, folder, engine, workers, control, opened or open_runtime, prepare)
        return tell_trackers(tracking, folder, summary)


def _require_a_simulation(loaded: LoadedFederation, engine: Engine) -> None:
    """Refuse a cohort, and attackers, where every client is a process of its own."""
    cohort = loaded.settings.simulation.cohort
    if cohort != 1 and engine == "network":
        raise ConfigError(
            f"simulation.cohort {cohort}",
            expected="--engine inprocess or ray, where clients share a process",
            got="--engine network",
            hint="Leave simulation.cohort out.",
        )
    if loaded.settings.simulation.attackers and engine == "network":
        raise ConfigError(
            "[[simulation.attackers]]",
            expected="--engine inprocess or ray, whose clients are simulated",
            got="--engine network, whose clients are real agents",
            hint="Leave the tables out, or use another engine.",
        )


def _require_no_script(loaded: LoadedFederation, prepare: Prepare | None) -> None:
    """Refuse clients that a script trains for, where none does."""
    if loaded.settings.training.by_script and prepare is None:
        raise ConfigError(
            "training.kind",
            expected="a method of Headwater's, where no script trains",
            got="'script'",
            hint="Start the simulation from the script: headwater.hf.simulate(FILE, make_trainer, OUT), or "
            "go on with one: headwater.hf.resume(make_trainer, OUT). Sweeps and other engines run none.",
        )


def open_runtime(loaded: LoadedFederation) -> ClientRuntime:
    """Base model and data of a run, read from their files.

    Raises:
        HeadwaterError: what is wrong with settings, data or model.
    """
    context = TrainingContext.open(loaded)
    context.require_cohorts()
    return with_attacks(ClientRuntime.open(loaded, context))


def _require_simulated_clients(loaded: LoadedFederation, engine: Engine) -> None:
    """Refuse simulated devices where clients are processes of their own, and budgets by links without any."""
    if engine == "network" and loaded.settings.simulation.devices is not None:
        raise ConfigError(
            "[simulation.devices]",
            expected="--engine inprocess or ray, which have a simulated clock",
            got="--engine network, whose clients are processes in real time",
            hint="Leave the table out, or use another engine.",
        )
    devices, seconds = loaded.settings.simulation.devices, loaded.settings.cohort.upload_s
    if engine != "network" and seconds is not None and (devices is None or not devices.has_uploads):
        raise ConfigError(
            f"cohort.upload_s {seconds:g}",
            expected="links that are measured: simulation.devices with upload_bps or a trace, or a network",
            got=f"--engine {engine} without them",
            hint="Leave it out, or add them.",
        )


def _run_here(
    loaded: LoadedFederation,
    folder: RunFolder,
    engine: Engine,
    workers: int,
    control: RunControl,
    opened: Opening,
    prepare: Prepare | None,
) -> dict[str, Any]:
    """In this process, its workers, or Ray's."""
    observer = control.observer
    with ExitStack() as stack:
        check_baselines(loaded.settings)
        runtime = opened(loaded)
        if prepare is not None:
            prepare(runtime)
        context = runtime.context
        record = _cohorts(folder, runtime, workers, observer)
        world = open_world(loaded, runtime, folder)
        started = {} if context.start is None else {"start": context.start.sha256}
        folder.keep_inputs(base=context.base_sha256, data=runtime.data.sha256, **started, **world.inputs)
        folder.keep_start(context.start)
        for warning in runtime.data.warnings:
            observer(Notice(warning))
        test = runtime.data.test()
        interrupted = threading.Event()
        server = FederationServer(
            loaded,
            runtime.run,
            context,
            folder,
            test=test,
            control=world.control(
                replace(control, interrupted=interrupted.is_set, masking=SimulatedMasking())
            ),
        )
        pool, names = None, runtime.data.clients
        if engine == "ray":
            from headwater.simulation.ray_engine import run_on_ray  # Ray is an extra

            run = partial(world.run, server, owners=names)
            outcome = run_on_ray(loaded, runtime, folder.clients, record, interrupted, run)
        else:
            _require_store(folder)
            store = SharedStore(folder.clients)
            if (count := min(workers, len(names))) > 1:
                pool = stack.enter_context(WorkerPool(count, loaded, folder.clients, runtime.cohort, prepare))
            grid: LocalGrid
            if runtime.cohort > 1:
                grid = CohortGrid(names, runtime, pool or ThisProcess(runtime, store), record)
            elif pool is not None:
                grid = WorkersGrid(names, pool, runtime)
            else:
                grid = InProcessGrid(names, runtime, store)
            outcome = world.run(server, grid, owners=names)
        close = partial(
            finish, loaded, folder, context, outcome, engine=engine,
            notices=(*context.notices, *runtime.data.warnings),
        )  # fmt: skip
        summary = close()  # whatever becomes of the baselines
        found = _baselines(loaded, folder, runtime, pool, test, outcome, observer)
        return close(baselines=found) if found else summary


def _require_store(folder: RunFolder) -> None:
    """Refuse to go on where a power cut has left nothing of what the clients keep but the file's name."""
    path = folder.clients / STORE_FILE
    if (folder.checkpoint_round() or 0) > 0 and path.is_file() and not path.stat().st_size:
        raise StorageError(
            f"{path}",
            expected="what the clients kept in earlier rounds",
            got="an empty file",
            hint="Put it back, or remove it: what the clients held back is lost then.",
        )


def _cohorts(folder: RunFolder, runtime: ClientRuntime, workers: int, observer: Observer) -> CohortRecord:
    """How many clients are one batch: as before where a run goes on, else as file or measurement say."""

    def keep(content: Mapping[str, Any]) -> None:
        folder.write_json(NAME, content)
        if content["halved"]:
            last = content["halved"][-1]
            text = f"round {last['round']}: {last['clients']} clients are too many at once for this memory"
            observer(Notice(f"{text}: they are trained in two batches, and so are later ones"))

    auto = runtime.context.loaded.settings.simulation.cohort == "auto"
    record = CohortRecord.open(folder, keep, measured=auto)
    if record is None and auto:
        found = measured(runtime, workers)
        record = CohortRecord(found.cohort, found.timed, keep=keep)
        record.keep()
        tried = ", ".join(f"{one.clients}: {one.ms:.3g} ms" for one in record.timed)
        why = (
            f"a client's step with {tried}"
            if tried
            else "few clients, long rows or little memory leave no choice"
        )
        observer(Notice(f"simulation.cohort: {record.cohort} clients a batch; {why}"))
    record = record or CohortRecord(runtime.cohort, keep=keep)
    runtime.set_cohort(record.cohort)
    return record


def _baselines(
    loaded: LoadedFederation,
    folder: RunFolder,
    runtime: ClientRuntime,
    pool: WorkerPool | None,
    test: Sequence[Example] | None,
    outcome: RunResult,
    observer: Observer,
) -> dict[str, Any]:
    """What the file's [baselines] ask for, once per run folder; nothing for a run that was stopped."""
    path = folder.path / "state" / "baselines.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    if not outcome.finished:
        return {}
    baselines = run_baselines(loaded.settings, runtime, pool, test, observer)
    folder.write_json("state/baselines.json", baselines)
    return baselines
