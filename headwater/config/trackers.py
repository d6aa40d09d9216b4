"""``[[trackers]]``: who is told of a run's rounds on the server. No setting here changes a bit of the run.

They are no part of :class:`~headwater.config.federation.Federation`: that is what a run is named by and what
clients are sent. They stand beside it, in :class:`~headwater.config.load.LoadedFederation`.
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator

from headwater.config.plugins import open_to
from headwater.config.settings import Settings
from headwater.config.traits import TrackerTraits
from headwater.errors import MissingDependency

MOST = 16
"""Trackers of one run: each has a thread."""
FileName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A file in the tracker's own folder. A submitted federation names it, so it is no path."""


class _OfExtra(TrackerTraits):
    """A tracker that writes with packages of the extra that is named like its kind."""

    packages: ClassVar[tuple[str, ...]]

    @field_validator("kind", check_fields=False)
    @classmethod
    def _there(cls, value: str) -> str:
        if missing := [name for name in cls.packages if importlib.util.find_spec(name) is None]:
            raise MissingDependency(
                f"[[trackers]] kind '{value}'",
                expected=f"the package {missing[0]}",
                got="none",
                hint=f'Install it: pip install "headwater[{value}]"',
            )
        return value


class TensorBoardTracker(_OfExtra):
    """Scalars of every round, in the run folder's `tensorboard/`; needs `headwater[tensorboard]`."""

    folder: ClassVar[str] = "tensorboard"
    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)
    kind: Literal["tensorboard"]


class MLflowTracker(_OfExtra):
    """A run of MLflow, in the run folder's `trackers/mlflow/mlflow.db`; needs `headwater[mlflow]`."""

    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic", "sqlparse")
    kind: Literal["mlflow"]


class WandBTracker(_OfExtra):
    """An offline run of Weights & Biases, in the run folder's `trackers/wandb/`; needs `headwater[wandb]`."""

    packages: ClassVar[tuple[str, ...]] = ("wandb",)
    kind: Literal["wandb"]


Tracker = Annotated[
    TensorBoardTracker | MLflowTracker | WandBTracker,
    Field(discriminator="kind"),
    open_to("trackers", TrackerTraits),
]


class Trackers(Settings):
    """The list, by itself."""

    trackers: tuple[Tracker, ...] = Field(default=(), max_length=MOST)

    @field_validator("trackers")
    @classmethod
    def _once(cls, value: tuple[TrackerTraits, ...]) -> tuple[TrackerTraits, ...]:
        kinds = [str(getattr(tracker, "kind", "")) for tracker in value]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"each kind at most once, and not '{min(twice)}' again")
        return value
