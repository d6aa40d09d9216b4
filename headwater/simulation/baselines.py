"""run_baselines: what the federation is compared with, on the same held-out examples.

*majority* gives the best constant answer (the most frequent label); *probe* is logistic regression on the
base model's frozen mean-pooled features of all training data; *alone* trains each client without the
others, and *centralised* all data in one place, both for as many rounds, each with as many passes, as
the federation (where it asks all clients in every round).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from headwater.client.execution.runtime import ClientRuntime
from headwater.config.federation import Federation
from headwater.config.training import MinibatchTraining
from headwater.errors import MissingDependency
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import directions_of
from headwater.server.events import Notice, Observer
from headwater.server.metrics import metric_name
from headwater.simulation.workers import WorkerPool
from headwater.state import AdapterState
from headwater.strategies.learning_rate import learning_rate_factor
from headwater.strategies.seeding import seed_plan
from headwater.tasks.batches import Example
from headwater.tasks.table import task_of
from headwater.training.cohort import TrainTask

CENTRALISED = ""
"""No client's name is empty."""


def run_baselines(
    settings: Federation,
    runtime: ClientRuntime,
    pool: WorkerPool | None,
    test: Sequence[Example] | None,
    observer: Observer,
) -> dict[str, Any]:
    """The baselines that the file asks for, each as the deciding metric's value.

    ``centralised_groups`` and ``alone_groups`` have it of each group of test rows (``evaluation.by``).

    Raises:
        MissingDependency: scikit-learn is missing.
    """
    check_baselines(settings)
    wanted = settings.baselines
    results: dict[str, Any] = {}
    names = runtime.data.clients
    if wanted.majority or wanted.probe:
        held_out = held_out_examples(runtime, test)
        train = [e for name in names for e in runtime.data.client(name).train]
        if wanted.majority:
            observer(Notice("baseline: majority"))
            reached = task_of(settings.data).constant(
                [e.targets for e in train], [e.targets for e in held_out]
            )
            results["majority"] = reached[metric_name(settings)]
        if wanted.probe:
            observer(Notice("baseline: probe on frozen features"))
            results["probe"] = _probe(runtime, train, held_out)
    jobs = ([*names] if wanted.alone else []) + ([CENTRALISED] if wanted.centralised else [])
    if jobs:
        observer(Notice(f"baseline: {len(jobs)} trainings without federation"))
        values = pool.call(train_apart, jobs) if pool else [train_apart(runtime, job) for job in jobs]
        by_job = dict(zip(jobs, values, strict=True))
        if wanted.centralised:
            results["centralised"], groups = by_job.pop(CENTRALISED)
            results |= {"centralised_groups": groups} if groups else {}
        if wanted.alone:
            results["alone"] = {name: value for name, (value, _) in by_job.items()}
            apart = {name: groups for name, (_, groups) in by_job.items() if groups}
            results |= {"alone_groups": apart} if apart else {}
    return results


def check_baselines(settings: Federation) -> None:
    """Refuse, before hours of training, a baseline that could not be measured after it.

    Raises:
        MissingDependency: scikit-learn is missing.
    """
    if settings.baselines.probe and find_spec("sklearn") is None:  # its import takes a second
        raise MissingDependency(
            "baselines.probe",
            expected="scikit-learn",
            got="no such package",
            hint='Install it: pip install "headwater[simulation]"',
        )


def held_out_examples(runtime: ClientRuntime, test: Sequence[Example] | None) -> Sequence[Example]:
    """The server's test examples; without them every client's validation split."""
    if test is not None:
        return test
    return [e for name in runtime.data.clients for e in runtime.data.client(name).validation]


def train_apart(runtime: ClientRuntime, who: str) -> tuple[float, dict[str, float]]:
    """Train one client alone, or all data in one place, as often as the federation does.

    Returns:
        The deciding metric, and that of each group of test rows.
    """
    settings = runtime.context.loaded.settings
    names = runtime.data.clients if who == CENTRALISED else (who,)
    examples = [e for name in names for e in runtime.data.client(name).train]
    state = runtime.context.initial_state()
    trainer = replace(runtime.context, attacks=None).trainer(settings.training)  # nobody else is misled
    rounds, training = settings.federation.rounds, settings.training
    if (
        isinstance(training, MinibatchTraining) and training.max_steps
    ):  # a cap for each client, here for all at once
        training = training.model_copy(update={"max_steps": training.max_steps * len(names)})
    for number in range(1, rounds + 1):
        factor = learning_rate_factor(settings.training, number, rounds)
        seeds = seed_plan(training, number)
        directions = None if seeds is None else directions_of(seeds, runtime.root, state.spec.numel)
        plan = ClientPlan(training, settings.codec.up, factor, seeds=seeds)
        key = runtime.root.child("baseline", number)
        (result,) = trainer.train([TrainTask(who, state, examples, plan, directions)], key=key)
        if result.delta is None:
            return float("nan"), {}
        if isinstance(result.delta, AdapterState):
            state = state + result.delta
        elif directions is not None:
            moved = torch.from_numpy(result.delta.expand(directions))
            state = state + AdapterState.from_vector(state.spec, moved)
    held_out = held_out_examples(runtime, runtime.data.test())
    name = metric_name(settings)
    (_, metrics), groups = runtime.context.evaluate_groups(state, held_out)
    return metrics[name], {g: own[name] for g, (_, own) in groups.items() if name in own}


def _probe(runtime: ClientRuntime, train: Sequence[Example], held_out: Sequence[Example]) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, truth = (np.array([e.targets[0] for e in examples]) for examples in (train, held_out))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(runtime.context.features(train), labels)
    return float((model.predict(runtime.context.features(held_out)) == truth).mean())
