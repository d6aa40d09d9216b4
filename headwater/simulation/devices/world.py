"""A simulation's world: real time, or the devices and the clock of ``[simulation.devices]``."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from headwater.client.execution.runtime import ClientRuntime
from headwater.config import LoadedFederation
from headwater.config.devices import IntervalTrace
from headwater.errors import ConfigError
from headwater.protocol.messages import ClientProfile
from headwater.server.clients.exchange import Exchange
from headwater.server.clients.run_control import RunControl
from headwater.server.rounds.federation_server import FederationServer, RunResult
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.devices.at_work import AtWorkFiles
from headwater.simulation.devices.certain import CertainTasks
from headwater.simulation.devices.clients import DeviceClients, SimulatedWay
from headwater.simulation.devices.clock import VirtualClock, micros
from headwater.simulation.devices.costs import Workload
from headwater.simulation.devices.fleet import Fleet
from headwater.simulation.devices.grid import NO_LIMITS, DeviceGrid, DeviceLimits
from headwater.simulation.devices.growth import GrowingData
from headwater.simulation.devices.memory import DeviceMemory
from headwater.simulation.devices.traces import DeviceTrace, read_devices, read_intervals
from headwater.training.context import TrainingContext


class RealTime:
    """Clients that are always there, and as fast as this machine.

    Attributes:
        inputs: SHA-256 of files, by name, that a resumed run must find as they were.
    """

    def __init__(self) -> None:
        self.inputs: Mapping[str, str] = {}

    def control(self, control: RunControl) -> RunControl:
        """What the server waits with."""
        return control

    def run(self, server: FederationServer, grid: Grid, *, owners: Sequence[str]) -> RunResult:
        """Run what is left of the federation on a grid."""
        return server.run(grid, owners=owners)


@dataclass
class DeviceWorld(RealTime):
    """Simulated devices.

    Args:
        clock: where the run goes on.
        fleet: the devices.
        workload: what requests ask for.
        files: where tasks outlive this process.
        done: the round that it goes on from; None for a new run.
        certain: what engines may work on ahead.
        context: with the base model.
        inputs: of the trace files.
    """

    clock: VirtualClock
    fleet: Fleet
    workload: Workload
    files: AtWorkFiles
    done: int | None
    certain: CertainTasks
    context: TrainingContext
    inputs: Mapping[str, str] = field(default_factory=dict)

    def control(self, control: RunControl) -> RunControl:  # noqa: D102 - inherited
        return replace(control, clock=self.clock, sleep=self.clock.sleep, simulated=True)

    def run(self, server: FederationServer, grid: Grid, *, owners: Sequence[str]) -> RunResult:  # noqa: D102
        fleet, memory = self.fleet, None
        growing = GrowingData({name: fleet.growth(name) for name in owners}) if fleet.grows else None
        if fleet.has_memory:
            memory = DeviceMemory(self.context, {name: fleet.memory_mb(name) for name in owners})
        limits = DeviceLimits(
            NO_LIMITS.rows if growing is None else growing.rows,
            NO_LIMITS.lacking if memory is None else memory.lacking,
        )
        devices = DeviceGrid(
            grid, self.clock, fleet, self.workload.passes, server.control.check, self.certain, limits
        )
        way = SimulatedWay(self.clock, fleet, devices, self.files, self.done, growing)

        def pool(
            exchange: Exchange, profiles: Mapping[str, ClientProfile], lost: Mapping[str, str]
        ) -> DeviceClients:
            unfit = dict[str, str]()
            if memory is not None:
                profiles, unfit = memory.profiles(profiles)
            return DeviceClients(exchange, profiles, {**lost, **unfit}, way=way)

        return server.run(devices, owners=owners, pool=pool)


def open_world(loaded: LoadedFederation, runtime: ClientRuntime, folder: RunFolder) -> RealTime:
    """What the file asks for; a run that is resumed goes on at the simulated time of its last round.

    Args:
        loaded: the federation.
        runtime: its model and data.
        folder: of the run.

    Raises:
        DataError: what is wrong with a trace.
        ConfigError: rows that come with time beside control variates.
    """
    settings = loaded.settings.simulation.devices
    if settings is None:
        return RealTime()
    trace, intervals = read_traces(loaded, runtime.data.clients)
    fleet = Fleet(settings, runtime.root, runtime.context.parameters, trace, intervals)
    if fleet.grows and loaded.settings.strategy.control_variates:
        raise ConfigError(
            "strategy.control_variates",
            expected="clients whose rows, and so whose part in c, stay as they are",
            got="simulation.devices with start_rows",
            hint="Leave one of them out.",
        )
    digest = traces_sha256(loaded)
    inputs = {} if digest is None else {"devices": digest}
    files_of_tasks, done = AtWorkFiles(folder.path / "state"), folder.checkpoint_round()
    clock, workload = VirtualClock(_ended(folder, done)), Workload(runtime.data)
    certain = CertainTasks(loaded.settings.cohort.target_clients, loaded.settings.cohort.deadline_s)
    return DeviceWorld(clock, fleet, workload, files_of_tasks, done, certain, runtime.context, inputs)


def read_traces(
    loaded: LoadedFederation, clients: Collection[str]
) -> tuple[DeviceTrace | None, dict[str, tuple[int, ...]]]:
    """Who has which device, and when who is online, by the files that a federation names.

    Raises:
        DataError: what is wrong with one of them.
    """
    settings = loaded.settings.simulation.devices
    trace, intervals = None, dict[str, tuple[int, ...]]()
    if settings is not None and settings.trace is not None:
        trace = read_devices(loaded.path(settings.trace), clients)
    if settings is not None and isinstance(found := settings.availability, IntervalTrace):
        intervals = read_intervals(loaded.path(found.path), clients, found.repeat_s)
    return trace, intervals


def traces_sha256(loaded: LoadedFederation) -> str | None:
    """Of the trace files that a federation names; None if it names none.

    Raises:
        OSError: one cannot be read.
    """
    settings, files = loaded.settings.simulation.devices, []
    if settings is not None and settings.trace is not None:
        files.append(loaded.path(settings.trace))
    if settings is not None and isinstance(settings.availability, IntervalTrace):
        files.append(loaded.path(settings.availability.path))
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(digests).hexdigest() if files else None


def _ended(folder: RunFolder, done: int | None) -> int:
    """Microseconds at which the last round ended that a run goes on from; 0 for a new one."""
    ends = (r.simulated.get("end_s") for r in folder.each_round() if r.round == done)
    return micros(next(ends, None) or 0.0) if done is not None else 0
