"""DeviceMemory: which trainings fit simulated devices that have less memory than this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from headwater.client.device.costs import Predictions, device_profile
from headwater.client.device.memory import nominal_base
from headwater.config.assignment import DEFAULT
from headwater.errors import ConfigError
from headwater.protocol.messages import ClientProfile, EvaluateRequest, TrainRequest
from headwater.strategies.assignment import assign
from headwater.training.context import TrainingContext


class DeviceMemory:
    """What the devices have, and what they are predicted to need.

    Args:
        context: with the base model.
        memory_mb: of each client, in MiB.
    """

    def __init__(self, context: TrainingContext, memory_mb: Mapping[str, int]) -> None:
        self._context, self._memory_mb = context, memory_mb
        self._predictions, self._base = Predictions(context), nominal_base(context)

    def profiles(
        self, profiles: Mapping[str, ClientProfile]
    ) -> tuple[dict[str, ClientProfile], dict[str, str]]:
        """What a planner may know of each client; and whom no method fits, with the reason."""
        settings, found, lost = self._context.loaded.settings, dict[str, ClientProfile](), dict[str, str]()
        if settings.assignment is None or not settings.assignment.by_device:
            return dict(profiles), {}
        for name, profile in profiles.items():
            device = device_profile(
                self._context, simulated_memory_mb=self._memory_mb[name], predictions=self._predictions
            )
            mine = replace(profile, device=device)
            try:
                if mine.train_examples:
                    assign(settings, {name: mine})
                found[name] = mine
            except ConfigError as error:
                lost[name] = str(error)
        return found, lost

    def lacking(self, request: TrainRequest | EvaluateRequest) -> str:
        """Why its device cannot do what it is asked, in a few words; empty if it can."""
        if self._context.model is None:
            return ""
        if isinstance(request, EvaluateRequest):
            needed = self._predictions.evaluation()
        else:
            size = int(getattr(request.plan.training, "batch_size", 1))
            needed = self._predictions.method(request.plan.method or DEFAULT, size)
        needed, has = self._base + needed, self._memory_mb[request.client]
        if needed <= has << 20:
            return ""
        return f"out of memory (simulated): it needs {math.ceil(needed / 2**20):,} MiB and has {has:,}"
