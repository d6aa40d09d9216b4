"""What this device has, and what the federation's methods would take of it: :func:`device_profile`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec

import torch

from headwater.client.device.memory import (
    available_memory,
    nominal_base,
    resident_base,
)
from headwater.client.device.trial import plan_of
from headwater.config.assignment import AssignedByPlanner
from headwater.config.data import NoData
from headwater.config.training import Training
from headwater.errors import HeadwaterError
from headwater.protocol.messages import DeviceProfile, MethodCost
from headwater.training.context import TrainingContext
from headwater.training.memory_estimate import SCRATCH_BYTES, inference_bytes, method_bytes


class Predictions:
    """What methods and an evaluation are predicted to take, each traced once.

    Args:
        context: with the base model.
    """

    def __init__(self, context: TrainingContext) -> None:
        self._context = context
        self._methods: dict[tuple[str, int], int] = {}
        self._evaluation: int | None = None

    def method(self, name: str, batch_size: int) -> int:
        """As of :func:`predicted`."""
        if (name, batch_size) not in self._methods:
            self._methods[name, batch_size] = predicted(self._context, name, batch_size)
        return self._methods[name, batch_size]

    def evaluation(self) -> int:
        """As of :func:`evaluation_bytes`."""
        if self._evaluation is None:
            self._evaluation = evaluation_bytes(self._context)
        return self._evaluation


def device_profile(
    context: TrainingContext,
    *,
    simulated_memory_mb: int | None = None,
    allowed: Callable[[str, int], bool] = lambda method, batch_size: True,
    measured: Callable[[str, int], float] | None = None,
    predictions: Predictions | None = None,
) -> DeviceProfile | None:
    """What the planner needs to know of this device; None where the file has no planner.

    A real device has what its owner's policy leaves the worker, and its costs begin at what this process
    holds now. A simulated one (``[assignment.devices]``) has the memory that it is given, and its costs are
    a function of model and file alone, so that every engine plans alike. A method without costs is one
    that this device does not offer, or that nobody would plan.

    Args:
        context: with the base model loaded.
        simulated_memory_mb: of a simulated device.
        allowed: whether the owner allows a method with such batches.
        measured: seconds of a step of a method with such a batch, where the federation plans by time; tried
            here, if absent. Raises HeadwaterError or MemoryError where it cannot be done.
        predictions: those of this context, where other devices are asked for as well.
    """
    settings = context.loaded.settings
    planner = settings.assignment
    if not isinstance(planner, AssignedByPlanner) or context.model is None:
        return None
    if simulated_memory_mb is None:
        memory, base = available_memory(), resident_base(context) - context.model.kept_bytes
    else:
        memory, base = simulated_memory_mb << 20, nominal_base(context)
    names = planner.prefer or settings.trainings
    costs = method_costs(context, names, memory, base=base, predictions=predictions)
    costs = {name: cost for name, cost in costs.items() if allowed(name, cost.batch_size)}
    if simulated_memory_mb is None:
        costs = {name: cost for name, cost in costs.items() if has_library(settings.trainings[name])}
    if planner.round_s is not None:
        costs = timed(costs, measured or step_seconds(context))
    return DeviceProfile(memory, torch.get_num_threads(), costs)


def method_costs(
    context: TrainingContext,
    names: Iterable[str],
    memory: int,
    *,
    base: int,
    floor: int = 0,
    predictions: Predictions | None = None,
) -> dict[str, MethodCost]:
    """Methods' predicted peaks at their batch size, and the largest batch (its size, halved) that fits.

    Args:
        context: with the base model.
        names: of the methods.
        memory: what a training may use, in bytes.
        base: what the process holds before a training.
        floor: what it held at its highest before, such as while it loaded the model. An evaluation's need
            is no less: no batch of a training helps there.
        predictions: as of :func:`device_profile`.
    """
    settings, predictions = context.loaded.settings, predictions or Predictions(context)
    floor = max(floor, base + predictions.evaluation())
    costs = {}
    for name in names:
        size = int(getattr(settings.trainings[name], "batch_size", 1))
        peak = max(floor, base + predictions.method(name, size))
        fits, needed = size, peak
        while fits and needed > memory:
            fits //= 2
            needed = max(floor, base + predictions.method(name, fits)) if fits else 0
        costs[name] = MethodCost(peak, batch_size=fits)
    return costs


def predicted(context: TrainingContext, name: str, batch_size: int) -> int:
    """Bytes that a method takes beyond the loaded process, at ``batch_size`` rows of ``data.max_tokens``."""
    settings, model = context.loaded.settings, context.model
    if model is None or isinstance(settings.data, NoData):
        return 0
    plan = plan_of(settings, context.spec, name)
    return method_bytes(model, plan, batch_size, settings.data.max_tokens) + cache_bytes(context, name)


def cache_bytes(context: TrainingContext, name: str) -> int:
    """What a client that uses this method may come to keep of the layers below what it trains."""
    settings, model = context.loaded.settings, context.model
    if model is None:
        return 0
    plan, evaluation = plan_of(settings, context.spec, name), settings.evaluation
    budget = getattr(plan.training, "trunk_cache_mb", 0)
    # whom spry gives which layers is not known yet: most have some below
    kept = budget if model.has_prefix(plan.tensors) or plan.training.splits_layers else 0
    kept += evaluation.trunk_cache_mb if evaluation.clients and model.has_prefix() else 0
    return int(kept) << 20


def evaluation_bytes(context: TrainingContext) -> int:
    """Bytes that an evaluation takes beyond the loaded process; 0 where clients do not evaluate."""
    settings, model = context.loaded.settings, context.model
    if model is None or isinstance(settings.data, NoData) or not settings.evaluation.clients:
        return 0
    tokens = settings.data.max_tokens
    return inference_bytes(model, settings.evaluation.batch_size, tokens) + SCRATCH_BYTES


def has_library(training: Training) -> bool:
    """Whether what this training needs beyond torch is installed here."""
    eight_bits = getattr(training, "optimizer", "") == "adamw8bit"
    return not eight_bits or find_spec("bitsandbytes") is not None


def step_seconds(context: TrainingContext) -> Callable[[str, int], float]:
    """How long a step of a method takes at a batch size: by two steps in this process."""
    from headwater.client.device.trial import train_two_steps

    def seconds(name: str, batch_size: int) -> float:
        began = time.perf_counter()
        steps = train_two_steps(context, name, batch_size)
        return (time.perf_counter() - began) / steps

    return seconds


def timed(costs: Mapping[str, MethodCost], seconds: Callable[[str, int], float]) -> dict[str, MethodCost]:
    """The costs with ``step_s``. What fits and yet cannot be done here has none: it is not offered."""
    found = {}
    for name, cost in costs.items():
        if not cost.batch_size:
            found[name] = cost
            continue
        with contextlib.suppress(HeadwaterError, MemoryError):
            found[name] = replace(cost, step_s=seconds(name, cost.batch_size))
    return found
