"""A script's runs: :func:`simulate_script` on one machine, :func:`run_agent_of` on an owner's device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import current_process
from pathlib import Path

from headwater.adapters.model import AdaptedModel
from headwater.client.agent.agent import run_agent
from headwater.client.agent.in_process import InProcessWorker
from headwater.client.execution.runtime import ClientRuntime
from headwater.config.agent import load_agent
from headwater.config.load import LoadedFederation, load_federation
from headwater.data.federated import FederatedData
from headwater.errors import ConfigError
from headwater.server.events import Observer
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.run import Run
from headwater.simulation.simulate import simulate as run_simulation
from headwater.training.context import TrainingContext
from headwater.training.script import Learner, Rows, ScriptTrainer


@dataclass(frozen=True)
class Script:
    """Code of an owner's that trains.

    Args:
        learner: makes who trains, for the federation's model.
        examples: how many it has itself; None where it trains on the rows of ``[data]``.
    """

    learner: Callable[[AdaptedModel], Learner]
    examples: int | None = None

    def into(
        self, context: TrainingContext, data: FederatedData, tick: Callable[[], None] = lambda: None
    ) -> TrainingContext:
        """``context`` in which this script trains.

        Args:
            context: of a federation.
            data: whose rows it gets.
            tick: called after each step of a Trainer; what it raises ends the training.

        Raises:
            ConfigError: the federation leaves training to no script, or has no base model.
        """
        require_script(context.loaded)
        if context.model is None:
            raise ConfigError("model.kind", expected="a base model for a script", got="'vector'")
        _freeze()
        rows: Callable[[str], Rows] = data.raw if self.examples is None else lambda client: ()
        return replace(context, script=ScriptTrainer(self.learner(context.model), rows, tick))

    def prepare(self, runtime: ClientRuntime) -> None:
        """Let this script train in a process of a simulation."""
        runtime.context = self.into(runtime.context, runtime.data)


def require_script(loaded: LoadedFederation) -> None:
    """Refuse a federation whose clients do not train with scripts.

    Raises:
        ConfigError: says what its file needs.
    """
    training = loaded.settings.training
    if not training.by_script:
        raise ConfigError(
            "training.kind", expected="'script', which leaves the training to a script",
            got=repr(training.kind),
            hint='Write [training] kind = "script" in the federation file.',
        )  # fmt: skip


def simulate_script(
    federation: LoadedFederation | str | Path,
    script: Script,
    out: str | Path,
    *,
    workers: int,
    observer: Observer,
) -> Run:
    """Run a federation in which every client trains with ``script``; see :func:`headwater.hf.simulate`."""
    loaded = federation if isinstance(federation, LoadedFederation) else load_federation(Path(federation))
    _require_simulable(loaded)
    folder = RunFolder.create(Path(out), loaded, {"engine": "inprocess"})
    return _run(folder, loaded, script, workers, observer)


def resume_script(out: str | Path, script: Script, *, workers: int, observer: Observer) -> Run:
    """Go on with a run of :func:`simulate_script`; see :func:`headwater.hf.resume`."""
    folder, loaded, _ = RunFolder.open(Path(out), trackers=True)
    _require_simulable(loaded)
    return _run(folder, loaded, script, workers, observer)


def _require_simulable(loaded: LoadedFederation) -> None:
    """Refuse what no script can have, and a script that would begin its run again in each of its workers."""
    if getattr(current_process(), "_inheriting", False):
        raise ConfigError(
            "workers",
            expected='a script that starts its run below if __name__ == "__main__":',
            got="one that starts it for everybody",
            hint="Each worker runs the script's module once, to find its function.",
        )
    require_script(loaded)
    wanted = loaded.settings.baselines
    if wanted.alone or wanted.centralised:
        raise ConfigError(
            "[baselines] alone, centralised", expected="neither: no script trains there", got="one of them",
            hint="Leave them out; majority and probe train nothing.",
        )  # fmt: skip


def _run(
    folder: RunFolder, loaded: LoadedFederation, script: Script, workers: int, observer: Observer
) -> Run:
    with _thawed():
        run_simulation(loaded, folder, workers=workers, observer=observer, prepare=script.prepare)
    return Run(folder.path, loaded)


def run_agent_of(script: Script, agent: str | Path) -> int:
    """Be the agent of the owner's device with ``script``; see :func:`headwater.hf.federate`."""
    settings = load_agent(Path(agent))
    with _thawed():
        return run_agent(settings, lambda options: InProcessWorker(options, script.into, script.examples))


def _freeze() -> None:
    """Take what lives now out of the collector's sight.

    Every ``Trainer.train()`` ends its last one's memory with a full collection (accelerate's
    ``free_memory``), which with torch and transformers loaded looks at half a million objects: 0.35 s of a
    core for each client and round.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def _thawed() -> Iterator[None]:
    """Afterwards the collector sees everything again."""
    try:
        yield
    finally:
        gc.unfreeze()
