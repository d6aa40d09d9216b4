"""Trainers as clients: :func:`federate` on a device, :func:`simulate` and :func:`resume` on one machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from transformers import Trainer

from headwater.adapters.model import AdaptedModel
from headwater.config.load import LoadedFederation
from headwater.hf.learner import MakeTrainer, TrainerLearner
from headwater.hf.refused import require_federable, require_rows
from headwater.hf.runs import Script, resume_script, run_agent_of, simulate_script
from headwater.server.events import Observer
from headwater.simulation.run import Run
from headwater.training.script import Learner


def simulate(
    federation: LoadedFederation | str | Path,
    make_trainer: MakeTrainer,
    out: str | Path,
    *,
    workers: int = 1,
    observer: Observer = lambda event: None,
) -> Run:
    """Run a federation on this machine in which every client trains with a Trainer.

    Args:
        federation: from :func:`headwater.load`, or its file; ``[training] kind = "script"``.
        make_trainer: ``(client, rows) -> Trainer``: the client's name and its training rows as they stand in
            the file, to a Trainer whose model is a PEFT model as ``[model]`` and ``[adapter]`` say. It is
            called in every round; its Trainers may share one model.
        out: the run's folder: new or empty.
        workers: processes that train; 1 trains in this one. With more, ``make_trainer`` stands at the top of
            a module, and what starts the run below ``if __name__ == "__main__"``: each process runs the
            module once. Bits are the same where the Trainers keep nothing from client to client.
        observer: is told what happens: :mod:`headwater.server.events`.

    Raises:
        HeadwaterError: as :func:`headwater.simulate`; every Trainer that cannot be federated is the failure
            of its client, by name.
    """
    return simulate_script(federation, _script_of(make_trainer), out, workers=workers, observer=observer)


def resume(
    make_trainer: MakeTrainer,
    out: str | Path,
    *,
    workers: int = 1,
    observer: Observer = lambda event: None,
) -> Run:
    """Go on with a run of :func:`simulate` that was stopped, to the end that it would have come to.

    Args:
        make_trainer: as of :func:`simulate`.
        out: the run's folder.
        workers: likewise; it may be another number.
        observer: is told what happens.

    Raises:
        HeadwaterError: as :func:`simulate`, or ``out`` is no run folder.
    """
    return resume_script(out, _script_of(make_trainer), workers=workers, observer=observer)


def _script_of(make_trainer: MakeTrainer) -> Script:
    return Script(partial(TrainerLearner, make_trainer))


def federate(trainer: Trainer | MakeTrainer, agent: str | Path = "agent.toml") -> int:
    """Take part in a server's federations with a Trainer, until SIGTERM or Ctrl-C.

    This process is then the device's agent, in place of ``headwater client run``, and trains in itself.

    Args:
        trainer: a Trainer whose model is a PEFT model as the federation's ``[model]`` and ``[adapter]`` say;
            its train_dataset is what the device trains on and weighs. Or a function as of :func:`simulate`,
            whose rows are those of the agent file's ``[data]``: then bits are those of a simulation.
        agent: the owner's file, with keys made by ``headwater client enroll``.

    Returns:
        0.

    Raises:
        ConfigError: the Trainer does what no round can have (its hint says what instead), or the agent file
            is wrong.
        StorageError: another agent uses the same state folder.
    """
    if not isinstance(trainer, Trainer) and callable(trainer):
        return run_agent_of(_script_of(trainer), agent)
    ready = require_federable(trainer)
    learner: Callable[[AdaptedModel], Learner] = lambda ours: TrainerLearner(lambda client, rows: ready, ours)  # noqa: E731
    return run_agent_of(Script(learner, examples=require_rows(ready)), agent)
