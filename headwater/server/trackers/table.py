"""The table of trackers: :func:`tracker_of`. Packages bring others (docs/how-to/add-a-tracker.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headwater.config.plugins import implementation
from headwater.config.trackers import MLflowTracker, TensorBoardTracker, WandBTracker
from headwater.config.traits import TrackerTraits
from headwater.server.trackers.mlflow import MLflow
from headwater.server.trackers.tensorboard import TensorBoard
from headwater.server.trackers.tracker import RunTracker
from headwater.server.trackers.wandb import WandB

# Any: the settings' class is the key, so each line knows its own.
TRACKERS: Mapping[type[Any], Callable[[Any, Path], RunTracker]] = {
    TensorBoardTracker: TensorBoard,
    MLflowTracker: MLflow,
    WandBTracker: WandB,
}


def tracker_of(settings: TrackerTraits, folder: Path) -> RunTracker:
    """The tracker of a ``[[trackers]]`` table.

    Args:
        settings: the table.
        folder: where it may write.

    Raises:
        ConfigError: neither :data:`TRACKERS` nor an installed package has one for these settings.
    """
    make = TRACKERS.get(type(settings)) or implementation("trackers", settings)
    made: RunTracker = make(settings, folder)
    return made
