"""SharedInputs: base model and data that runs of one process, one after the other, have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.client.execution.runtime import ClientRuntime
from headwater.config import LoadedFederation
from headwater.data.federated import FederatedData
from headwater.seeds.keys import Key
from headwater.simulation.attackers.attacks import with_attacks
from headwater.tasks.table import task_of
from headwater.training.context import TrainingContext

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel


class SharedInputs:
    """What the latest run was opened with, for the next one. A run has the bits that it has alone.

    The base model is read again only for a run with another ``[model]`` or other labels, or after an adapter
    that cannot be taken off (:meth:`AdaptedModel.release`); rows are read and tokenised again for another
    ``[data]`` or seed. What a trunk cache kept of a base's frozen layers is kept on.

    Attributes:
        base_loads: how often a base model was read from its files.
        data_reads: how often data were read and tokenised.
    """

    def __init__(self) -> None:
        self._model: tuple[str, AdaptedModel] | None = None
        self._data: tuple[str, FederatedData] | None = None
        self.base_loads = self.data_reads = 0

    def open(self, loaded: LoadedFederation) -> ClientRuntime:
        """The runtime of a run; what an earlier one was given must no longer be used.

        Raises:
            HeadwaterError: what is wrong with settings, data or model.
        """
        context = self.context(loaded)
        context.require_cohorts()
        return with_attacks(ClientRuntime.open(loaded, context, self._data_of(loaded, context)))

    def context(self, loaded: LoadedFederation) -> TrainingContext:
        """Base and adapter of a run, without its data.

        Raises:
            ModelError: the base or the adapter is wrong, or they do not go together.
        """
        key = base_key(loaded)
        last = self._last(key)
        base = None if last is None else last.release()
        if base is None and loaded.settings.model.pretrained:
            self.base_loads += 1
        context = TrainingContext.open(loaded, base)
        if context.model is not None:
            if base is not None and last is not None:
                context.model.inherit_prefix(last)
            self._model = key, context.model
        return context

    def forget(self) -> None:
        """Give all of it back: after a run that ended where nobody knows in what state it left them."""
        self._model = self._data = None

    def _last(self, key: str) -> AdaptedModel | None:
        """The latest run's model, if this one has the same base; else its memory is given back."""
        last, self._model = self._model, None  # whatever is raised from here on
        return last[1] if last is not None and last[0] == key else None

    def _data_of(self, loaded: LoadedFederation, context: TrainingContext) -> FederatedData:
        key = data_key(loaded)
        if self._data is None or self._data[0] != key:
            self._data = None  # its memory, before the next ones take theirs
            root = Key.root(loaded.settings.federation.seed)
            self._data = key, FederatedData.open(loaded, context.tokenizer, root)
            self.data_reads += 1
        return self._data[1]


def data_key(loaded: LoadedFederation) -> str:
    """Of all that a run's tokenised data are a function of."""
    settings = loaded.settings
    return f"{base_key(loaded)} {settings.federation.seed} {settings.data.model_dump_json()}"


def base_key(loaded: LoadedFederation) -> str:
    """Of all that a base model and its tokenizer are a function of."""
    settings = loaded.settings
    labels = task_of(settings.data).outputs if settings.data.has_rows else None
    return f"{settings.model.model_dump_json()} {labels} {loaded.folder}"
