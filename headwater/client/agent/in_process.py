"""InProcessWorker: the agent's worker where the owner's script is the process that has model and data.

``headwater client run`` starts a child; a script that trains cannot be sent to one. It is the owner's own
code, so it needs no walls; what a child's end would have saved (an agent that lives on) it does not have.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from headwater.client.agent.advice import for_owner
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.device_runtime import DeviceRuntimes, OwnScript
from headwater.client.agent.known_runs import KnownRun
from headwater.client.agent.worker import WorkerOptions
from headwater.client.agent.worker_main import hold_store, limit_process
from headwater.client.execution.answer import answer
from headwater.client.execution.store import DirectoryStore
from headwater.client.policy import Policy
from headwater.config.agent import PolicySettings
from headwater.data.federated import FederatedData
from headwater.errors import DataError
from headwater.training.context import TrainingContext

Trains = Callable[[TrainingContext, FederatedData, Callable[[], None]], TrainingContext]
"""A run's context and data, and what to call after each step, to the context in which the script trains."""


class InProcessWorker:
    """Answers requests in this process; as :class:`headwater.client.agent.worker.Worker` for the agent.

    Args:
        options: the owner's limits, which hold for this process.
        trains: lets the script train.
        examples: of the script's own; None where it trains on the owner's data.

    Attributes:
        notice: what the owner should know of the current run, or nothing.
        rows: the owner's that are in memory; None without.
    """

    def __init__(self, options: WorkerOptions, trains: Trains, examples: int | None = None) -> None:
        self._name = options.name
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(hold_store(Path(options.state)))
        limit_process(json.loads(json.dumps(asdict(options))))
        self._tick: Callable[[], None] = lambda: None
        self._devices = DeviceRuntimes(
            options.name,
            Path(options.data),
            threads=options.threads,
            simulated_memory_mb=options.simulated_memory_mb,
            policy=Policy(PolicySettings.model_validate(options.policy)),
            script=OwnScript(lambda context, data: trains(context, data, lambda: self._tick()), examples),
        )
        self.notice = ""
        self.rows: RowsRead | None = None

    def answer(
        self,
        joined: KnownRun,
        model: Path | None,
        envelope: bytes,
        state: bytes,
        tick: Callable[[], None] = lambda: None,
    ) -> bytes:
        """The encoded reply to a request.

        Args:
            joined: the run.
            model: folder of its base model.
            envelope: the request.
            state: the state beside it.
            tick: called after each step of a Trainer; what it raises ends the training and is raised on.

        Raises:
            HeadwaterError: it could not be answered.
        """
        self._tick = tick
        try:
            runtime = self._devices.open(joined, model)
            runtime.data.client(self._name)  # what is wrong with the data shows here and nowhere later
            return answer(
                envelope, state, self._name, DirectoryStore(joined.folder, ledgers=joined.ledgers), runtime
            )
        except DataError as error:
            raise for_owner(error) from error
        finally:
            self._tick = lambda: None
            self.notice, self.rows = self._devices.notice, self._devices.rows

    def close(self) -> None:
        """Nothing: model and data are the script's, and the agent closes its worker between tasks too."""

    def release(self) -> None:
        """Let another worker have the store."""
        self._stack.close()
