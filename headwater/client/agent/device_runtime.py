"""DeviceRuntimes: model and data of a device, for the run that its server described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headwater.client.agent.advice import for_owner
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.known_runs import KnownRun
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.policy import Policy
from headwater.config.data import NoData
from headwater.config.load import LoadedFederation
from headwater.config.model import VectorModel
from headwater.data.federated import FederatedData
from headwater.errors import DataError, ModelError
from headwater.protocol.failures import FailureCode, coded
from headwater.seeds.keys import Key
from headwater.tasks.table import task_of
from headwater.training.context import TrainingContext

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.base import Base

_CHANGED = (
    "the files of your data have changed since they were read; it goes on with the rows as they were until "
    "the agent is started again. Put the files back, or keep the new ones for the next run"
)


@dataclass(frozen=True)
class OwnScript:
    """A script of the owner's that trains in this process.

    Args:
        trains: a run's context and data to the context in which it trains.
        examples: of its own; None where it trains on the owner's data.
    """

    trains: Callable[[TrainingContext, FederatedData], TrainingContext]
    examples: int | None = None


class DeviceRuntimes:
    """Opens runs for one owner, one at a time. The base model stays while runs share it.

    Args:
        name: the enrolled name.
        data: the owner's data, whatever path the server's settings name.
        threads: at most so many CPU threads. Fewer than the federation asks for may change the last bits
            of a result: its updates then carry the metric ``threads``.
        simulated_memory_mb: play a device with so much memory.
        policy: what the owner allows: no other method is offered to the planner.
        script: trains instead of Headwater; None in a worker.

    Attributes:
        loads: how often a base model was read from its files.
        notice: what the owner should know of the current run, its model and their data: lines, or nothing.
        rows: those of the owner that are in memory for the current run; None where none are read.
    """

    def __init__(
        self,
        name: str,
        data: Path,
        *,
        threads: int | None = None,
        simulated_memory_mb: int | None = None,
        policy: Policy | None = None,
        script: OwnScript | None = None,
    ) -> None:
        self._name, self._data, self._threads = name, data, threads
        self._policy, self._script = policy, script
        self._simulated = {} if simulated_memory_mb is None else {name: simulated_memory_mb}
        self._current: tuple[str, ClientRuntime] | None = None
        self._said = ""  # the notice of when the run was opened
        self.loads, self.notice = 0, ""
        self.rows: RowsRead | None = None

    def open(self, joined: KnownRun, model: Path | None) -> ClientRuntime:
        """The runtime of this run; the last one again if nothing changed.

        Args:
            joined: what the server said.
            model: folder of the base model; None without one.

        Raises:
            ModelError: the base model or the adapter is wrong.
            DataError: the owner's data does not fit the federation.
            DecodeError: settings that are not understood.
        """
        digest, state = joined.sha256(), joined.folder.parent.parent
        if self._current is not None and self._current[0] == digest:
            self.notice = self._said
            if self.rows is not None and self.rows.changed(self._data, skip=state):
                self.notice = "\n".join(filter(None, [self._said, f"run {joined.run}: {_CHANGED}"]))
            return self._current[1]
        loaded, self.rows = joined.loaded(model), None
        self._require_script(loaded, joined.run)
        base = self._release(loaded)
        if base is None and not isinstance(loaded.settings.model, VectorModel):
            self.loads += 1
        context = TrainingContext.open(loaded, base)
        metrics = self._limit_threads(loaded.settings.federation.threads)
        root = Key.root(loaded.settings.federation.seed)
        own_rows = self._script is not None and self._script.examples is not None
        rows = (
            None
            if own_rows or isinstance(loaded.settings.data, NoData)
            else RowsRead.of(joined.run, self._data, skip=state)
        )
        data = self._opened(loaded, context, root)
        if self._script is not None:
            context = self._script.trains(context, data)
        self.notice = "\n".join([*filter(None, [self.notice]), *context.notices, *data.warnings])
        own = loaded.settings.own_part
        runtime = ClientRuntime(
            joined.run, context, data, root, metrics, self._simulated, self._policy, own_part=own
        )
        self._current, self.rows, self._said = (digest, runtime), rows, self.notice
        return runtime

    def _opened(self, loaded: LoadedFederation, context: TrainingContext, root: Key) -> FederatedData:
        """The owner's data, or the number of the script's own examples."""
        if self._script is not None and self._script.examples is not None:
            return FederatedData.counted(loaded, self._name, self._script.examples, root)
        try:
            return FederatedData.own(loaded, self._data, self._name, context.tokenizer, root)
        except DataError as error:
            raise for_owner(error) from error

    def _require_script(self, loaded: LoadedFederation, run: str) -> None:
        """Refuse a run that a script must train for, where none does."""
        if self._script is None and loaded.settings.training.by_script:
            error = ModelError(
                f"run {run}: training.kind 'script'",
                expected="an agent that a script of the owner's starts",
                got="headwater client run",
                hint="Start the script in its place: headwater.hf.federate, docs/how-to/use-your-trainer.md.",
            )
            raise coded(error, FailureCode.SCRIPT_MISSING)

    def _release(self, loaded: LoadedFederation) -> Base | None:
        """The last run's base model if this run has the same; else its memory is given back first."""
        current, self._current = self._current, None
        model = None if current is None else current[1].context.model
        data = loaded.settings.data
        labels = task_of(data).outputs if data.has_rows else None
        if model is None or (model.base.settings, model.base.labels) != (loaded.settings.model, labels):
            return None
        return model.release()

    def _limit_threads(self, wanted: int) -> dict[str, float]:
        self.notice = ""
        if self._threads is None or self._threads >= wanted:
            return {}
        torch.set_num_threads(self._threads)
        self.notice = (
            f"policy threads {self._threads}: the federation asks for {wanted}, so that the last bits of "
            "this device's updates may differ from a simulation's"
        )
        return {"threads": float(self._threads)}
