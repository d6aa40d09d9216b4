"""Two steps of a method on this device, as its costs are measured by: :func:`train_two_steps`."""

from __future__ import annotations

from dataclasses import replace

from headwater.config.data import NoData
from headwater.config.federation import Federation
from headwater.errors import TrainingError
from headwater.merging.coverage import last_layers
from headwater.protocol.messages import ClientPlan
from headwater.state import StateSpec
from headwater.training.context import TrainingContext


def plan_of(settings: Federation, spec: StateSpec, name: str) -> ClientPlan:
    """What a client that uses this method is asked, as far as it matters for what the method takes."""
    method = settings.methods.get(name)
    last = method.last_layers if method else None
    return ClientPlan(
        training=settings.trainings[name],
        codec=settings.codec.up,
        tensors=None if last is None else last_layers(spec, last),
        rank=method.rank if method else None,
        method=name,
    )


_STEPS = 2


def train_two_steps(context: TrainingContext, name: str, batch_size: int) -> int:
    """Train ``name`` on synthetic rows, two steps; how many there were.

    Raises:
        TrainingError: it diverged, or this machine cannot do it.
    """
    from headwater.client.device.trial import plan_of
    from headwater.config.training import MinibatchTraining
    from headwater.seeds.coefficients import directions_of
    from headwater.seeds.keys import Key
    from headwater.strategies.seeding import seed_plan
    from headwater.tasks.batches import Example
    from headwater.training.cohort import TrainTask
    from headwater.training.memory_estimate import synthetic

    settings, model = context.loaded.settings, context.model
    if model is None or isinstance(settings.data, NoData):
        return _STEPS
    plan, key = plan_of(settings, context.spec, name), Key.root(0)
    changes: dict[str, object] = {"batch_size": batch_size}
    if isinstance(plan.training, MinibatchTraining):
        changes |= {"max_steps": _STEPS, "epochs": float(_STEPS)}
    else:
        changes["generations"] = _STEPS
    training = plan.training.model_copy(update=changes)
    seeds = seed_plan(training, 1)
    directions = None if seeds is None else directions_of(seeds, key, context.spec.numel)

    plan = replace(plan, training=training, seeds=seeds)
    rows = synthetic(model, _STEPS * batch_size, settings.data.max_tokens)
    examples = [
        Example(rows.tokens[i].numpy().astype("int32"), rows.targets[i].reshape(-1).numpy())
        for i in range(len(rows))
    ]
    task = TrainTask("profile", context.initial_state(), examples, plan, directions)
    (result,) = context.trainer(training).train([task], key=key)
    if result.error is not None:
        raise result.error
    if result.delta is None:
        raise TrainingError(f"method {name}", expected="an update of its two steps", got="none")
    return max(1, result.steps)
