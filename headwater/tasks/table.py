"""The task of every kind of data: :func:`task_of`. A new task is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwater.config.plugins import implementation
from headwater.config.traits import DataTraits
from headwater.errors import ConfigError
from headwater.tasks.classification import Classification
from headwater.tasks.extractive_qa import ExtractiveQA
from headwater.tasks.language_model import Instruction, RunningText
from headwater.tasks.masked_language_model import MaskedLanguageModel
from headwater.tasks.multi_label import MultiLabel
from headwater.tasks.regression import Regression
from headwater.tasks.seq2seq import Seq2Seq
from headwater.tasks.task import Task
from headwater.tasks.token_classification import TokenClassification

AnyTask = Task[Any]
_TASKS: tuple[type[AnyTask], ...] = (
    Classification,
    Regression,
    MultiLabel,
    TokenClassification,
    ExtractiveQA,
    MaskedLanguageModel,
    Seq2Seq,
    RunningText,
    Instruction,
)
"""Every task; it says itself which settings are its own."""
_BY_SETTINGS: Mapping[type[DataTraits], type[AnyTask]] = {task.settings_class: task for task in _TASKS}


def task_of(settings: DataTraits) -> AnyTask:
    """The task of ``[data]``.

    Raises:
        ConfigError: data of which nothing is learnt, or neither the table nor an installed package has a
            task for it.
    """
    if not settings.has_rows:
        raise ConfigError("data.kind", expected="a kind of data that a model learns from", got="'none'")
    task: AnyTask = (_BY_SETTINGS.get(type(settings)) or implementation("tasks", settings))(settings)
    return task
