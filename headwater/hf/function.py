"""LocalTraining: a function of the owner's that trains, as a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from headwater.adapters.given import GivenModel
from headwater.adapters.model import AdaptedModel
from headwater.config.load import LoadedFederation
from headwater.hf.runs import Script, resume_script, run_agent_of, simulate_script
from headwater.server.events import Observer
from headwater.simulation.run import Run
from headwater.training.script import Learner, LocalPlan, Rows

Learns = Callable[[Any, Rows, LocalPlan], Mapping[str, float]]
"""``(model, rows, plan) -> metrics``."""


class LocalTraining:
    """The decorator ``headwater.local_training``: makes of a function a client's local training.

    The function gets the PEFT model in training mode with the global adapter in it (with model.kind
    'encoder' a module of base, adapter and head: ``model(tokens, mask)`` gives logits), the client's training
    rows as they stand in its file, and a :class:`LocalPlan`. What is in the adapter's tensors afterwards is
    the update. It returns metrics, ``loss`` among them. NaN, tensors of another shape, and a base that is no
    more what it was are refused by name.

    Args:
        function: ``(model, rows, plan) -> metrics``. It may still be called by hand.
    """

    def __init__(self, function: Learns) -> None:
        self._function = function
        update_wrapper(self, function)

    def __call__(self, model: Any, rows: Rows, plan: LocalPlan) -> Mapping[str, float]:  # noqa: ANN401 - PEFT's
        """The function itself."""
        return self._function(model, rows, plan)

    def simulate(
        self,
        federation: LoadedFederation | str | Path,
        out: str | Path,
        *,
        workers: int = 1,
        observer: Observer = lambda event: None,
    ) -> Run:
        """Run a federation on this machine in which every client trains with the function.

        Args:
            federation: from :func:`headwater.load`, or its file; ``[training] kind = "script"``.
            out: the run's folder: new or empty.
            workers: processes that train, as of :func:`headwater.hf.simulate`.
            observer: is told what happens: :mod:`headwater.server.events`.

        Raises:
            HeadwaterError: as :func:`headwater.simulate`.
        """
        return simulate_script(federation, self._script(), out, workers=workers, observer=observer)

    def resume(self, out: str | Path, *, workers: int = 1, observer: Observer = lambda event: None) -> Run:
        """Go on with a run of :meth:`simulate` that was stopped, to the end that it would have come to.

        Args:
            out: the run's folder.
            workers: likewise; it may be another number.
            observer: is told what happens.

        Raises:
            HeadwaterError: as :meth:`simulate`, or ``out`` is no run folder.
        """
        return resume_script(out, self._script(), workers=workers, observer=observer)

    def federate(self, agent: str | Path = "agent.toml") -> int:
        """Take part in a server's federations with the function, until SIGTERM or Ctrl-C.

        Args:
            agent: the owner's file, with keys made by ``headwater client enroll``; its ``[data]`` is what the
                function gets.

        Returns:
            0.

        Raises:
            ConfigError: the agent file is wrong.
            StorageError: another agent uses the same state folder.
        """
        return run_agent_of(self._script(), agent)

    def _script(self) -> Script:
        return Script(partial(FunctionLearner, self))

    def __reduce__(self) -> str:
        """Pickled by its name, which is no longer the function's own."""
        return self._function.__qualname__


local_training = LocalTraining


class FunctionLearner(Learner):
    """Trains a copy of the federation's model with a function.

    Args:
        function: as of :class:`LocalTraining`.
        ours: the federation's model.
    """

    def __init__(self, function: Learns, ours: AdaptedModel) -> None:
        self._function, self._ours = function, ours
        self._given: GivenModel | None = None

    def model(self, plan: LocalPlan, rows: Rows) -> GivenModel:  # noqa: D102 - inherited
        self._given = self._given or GivenModel.copy_of(self._ours, who="the function's model")
        return self._given

    def learn(  # noqa: D102 - inherited
        self, given: GivenModel, plan: LocalPlan, rows: Rows, after_step: Callable[[], None]
    ) -> tuple[Mapping[str, float], int]:
        self._given = None  # whatever a function that fails leaves behind, the next task starts afresh
        network = given.network
        network.train()
        said = self._function(network.peft if network.head is None else network, rows, plan)
        steps = said.get("steps", 0) if isinstance(said, Mapping) else 0
        return said, int(steps) if isinstance(steps, int) else 0
