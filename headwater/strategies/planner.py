"""pick: which method a device uses, by its own profile. Pure.

The file's order of preference decides; the device's memory and time say what is possible. A method that
does not fit at its batch size is tried with the batch halved, as the device has predicted it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwater.config.assignment import AssignedByPlanner
from headwater.config.federation import Federation
from headwater.config.training import Training
from headwater.errors import ConfigError
from headwater.protocol.messages import DeviceProfile, MethodCost


@dataclass(frozen=True, slots=True)
class Choice:
    """What a client is to do.

    Args:
        method: its name in the federation file.
        batch_size: of it, at most the file's.
        max_steps: of a round, at most the file's; None: as many as the file says.
        reason: one sentence for people.
    """

    method: str
    batch_size: int
    max_steps: int | None
    reason: str


def pick(federation: Federation, device: DeviceProfile, *, examples: int) -> Choice:
    """The first method, best first, that fits the device.

    Args:
        federation: the file; its order of preference is ``assignment.prefer``, or else ``default`` and
            then ``[methods]`` as in the file.
        device: what the device said.
        examples: of the client, which decide how many steps a round has.

    Raises:
        ConfigError: nothing fits; names the least that would.
    """
    planner = federation.assignment if isinstance(federation.assignment, AssignedByPlanner) else None
    order = (planner.prefer if planner else ()) or tuple(federation.trainings)
    limit = planner.round_s if planner else None
    skipped: list[str] = []
    for name in order:
        training, cost = federation.trainings[name], device.costs.get(name)
        if cost is None:
            skipped.append(f"'{name}' has no costs in this device's profile")
            continue
        if cost.batch_size < 1:
            skipped.append(f"'{name}' needs {_mib(cost.peak_bytes)}")
            continue
        batch = min(cost.batch_size, _batch(training))
        steps = max(1, training.steps_of(examples, batch) or 0)
        allowed = steps if limit is None or not cost.step_s else int(min(steps, limit / cost.step_s))
        if allowed < 1 or (allowed < steps and training.fixed_steps):
            skipped.append(f"'{name}' takes {cost.step_s * (1 if allowed < 1 else steps):.3g} s")
            continue
        cut = allowed if allowed < steps else None
        return Choice(name, batch, cut, _reason(name, training, cost, device, batch, cut, skipped))
    raise ConfigError(
        "assignment planner",
        expected=f"a method that fits {_mib(device.memory_bytes)}"
        + (f" and {limit:g} s a round" if limit is not None else ""),
        got="; ".join(skipped),
        hint=_hint([device.costs[name] for name in order if name in device.costs]),
    )


def _hint(costs: list[MethodCost]) -> str:
    """The next step where nothing fits, by what stands in the way."""
    if not costs:
        return "The device offers none of these methods: its owner's policy may leave them out."
    if any(cost.batch_size for cost in costs):
        return "Raise assignment.round_s, or offer a method with fewer steps."
    least = min(cost.peak_bytes for cost in costs)
    return (
        f"The least memory that a method needs at its batch size is {_mib(least)}: give the device more, or "
        "lower batch_size, data.max_tokens, last_layers, or evaluation.batch_size, where clients evaluate."
    )


def _batch(training: Training) -> int:
    return int(getattr(training, "batch_size", 1))


def _reason(
    name: str,
    training: Training,
    cost: MethodCost,
    device: DeviceProfile,
    batch: int,
    cut: int | None,
    skipped: list[str],
) -> str:
    have = _mib(device.memory_bytes)
    if batch == _batch(training):
        text = f"'{name}' fits: {_mib(cost.peak_bytes)} of {have}"
    else:
        text = (
            f"'{name}' fits {have} with batches of {batch}: at {_batch(training)} "
            f"it would need {_mib(cost.peak_bytes)}"
        )
    if cut is not None:
        text += f"; {cut} steps are what the time allows"
    return f"{text} ({'; '.join(skipped)})" if skipped else text


def _mib(size: int) -> str:
    return f"{math.ceil(size / 2**20):,} MiB"
