"""TrainingContext: everything one process needs to train, measure and export a federation's adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from headwater.bits import require
from headwater.config import LoadedFederation
from headwater.config.data import NoData
from headwater.config.federation import Federation
from headwater.config.model import VectorModel
from headwater.config.plugins import implementation
from headwater.config.training import Training
from headwater.data.opened import reads_pairs
from headwater.data.split import sample
from headwater.errors import ConfigError, HeadwaterError
from headwater.privacy.covered_card import covered
from headwater.process_memory import importing
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tasks.batches import Example
from headwater.tasks.table import task_of
from headwater.training.backprop import BackpropTrainer
from headwater.training.batched.losses import BatchedLossTrainer
from headwater.training.batched.trainer import BatchedBackpropTrainer
from headwater.training.batched.trial import require_stackable
from headwater.training.blackbox import BlackboxTrainer
from headwater.training.cohort import CohortTrainer
from headwater.training.decomfl import DecomflTrainer
from headwater.training.evaluate import Measured, evaluate_each, evaluate_groups, features
from headwater.training.forward_gradient import ForwardGradientTrainer
from headwater.training.kseed import KseedTrainer
from headwater.training.mezo import MezoTrainer
from headwater.training.noop import NoopTrainer

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.base import Base
    from headwater.adapters.model import AdaptedModel
    from headwater.adapters.reading.tokenizer import TextTokenizer
    from headwater.adapters.start.start import Start


class Attacks(Protocol):
    """What some clients of an experiment do to the federation (``[[simulation.attackers]]``)."""

    def by(self, trainer: CohortTrainer) -> CohortTrainer:
        """The trainer as all clients use it: those who attack get another result from it."""

    def success(self, context: TrainingContext, state: AdapterState) -> Mapping[str, float]:
        """Rates that say how far they get, by name."""


@dataclass(frozen=True)
class TrainingContext:
    """Base, tokenizer, adapter and trainers of one process. Make it with :meth:`open`.

    Args:
        loaded: the federation.
        model: its adapted model; None with model.kind 'vector'.
        spec: of every state of the federation.
        base_sha256: of the base model's files (of ``b"vector"`` without one).
        notices: what the user should know of model and adapter, one sentence each.
        cohort: most clients that are trained as one batch; 1 before "auto" is measured.
        script: trains where the file leaves that to a script; None where none runs.
        attacks: of a simulation whose file has clients that lie.
    """

    loaded: LoadedFederation
    model: AdaptedModel | None
    spec: StateSpec
    base_sha256: str
    notices: tuple[str, ...] = ()
    cohort: int = 1
    script: CohortTrainer | None = None
    attacks: Attacks | None = None

    @staticmethod
    def open(loaded: LoadedFederation, base: Base | None = None, *, threads: bool = True) -> TrainingContext:
        """Load the base model and attach the adapter. Sets this process's CPU threads to the file's.

        Args:
            loaded: the federation.
            base: its base model, where this process has it: from :meth:`AdaptedModel.release`.
            threads: False leaves the threads as they are, and asks for no mode: another federation computes
                in this process.

        Raises:
            ModelError: the base or the adapter is wrong.
            ConfigError: ``data.max_tokens`` is more than the base has positions for, or this process was
                started in another mode than ``federation.bits``.
            MissingDependency: quantisation without its library.
        """
        settings = loaded.settings
        if threads:
            require(settings.federation.bits)
            torch.set_num_threads(settings.federation.threads)
        if isinstance(settings.model, VectorModel):
            spec = StateSpec((TensorSpec("vector", (settings.model.size,), "vector"),))
            base_sha256 = hashlib.sha256(b"vector").hexdigest()
            return TrainingContext(loaded, None, spec, base_sha256, _of_codecs(settings, spec))
        with importing():
            from headwater.adapters.base import load_base
            from headwater.adapters.model import AdaptedModel
            from headwater.adapters.trial import try_model

        outputs = task_of(settings.data).outputs
        base = base or load_base(settings.model, loaded.folder, labels=outputs)
        _require_positions(base, settings)
        model = AdaptedModel.build(loaded, base, key=Key.root(settings.federation.seed).child("adapter"))
        said = try_model(
            model,
            max_tokens=2 if isinstance(settings.data, NoData) else settings.data.max_tokens,
            slopes=any(t.learns_from == "slopes" for t in settings.trainings.values()),
        )
        wanted = settings.simulation.cohort
        return TrainingContext(
            loaded, model, model.spec, model.base_sha256,
            (*model.notices, *said, *_of_codecs(settings, model.spec)),
            cohort=1 if wanted == "auto" else wanted,
        )  # fmt: skip

    @property
    def start(self) -> Start | None:
        """The adapter that the federation starts from; None where its seed says how it starts."""
        return None if self.model is None else self.model.start

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The base model's tokenizer; None without a base model."""
        return None if self.model is None else self.model.base.tokenizer

    @property
    def parameters(self) -> int:
        """Of the base (with its adapter), without embeddings; the vector's size without a base model."""
        if self.model is None:
            return self.spec.numel
        return int(self.model.base.model.num_parameters(exclude_embeddings=True))

    @property
    def pad(self) -> int:
        """Token id that fills a batch."""
        return 0 if self.tokenizer is None else self.tokenizer.pad

    def initial_state(self) -> AdapterState:
        """The state of round 0: a function of the federation's seed, base and adapter, or its start."""
        return AdapterState.zeros(self.spec) if self.model is None else self.model.initial_state()

    def trainer(self, training: Training) -> CohortTrainer:
        """The trainer of plans with this training.

        Raises:
            ConfigError: training that needs a base model, or a script, without one.
        """
        trainer = self._honest_trainer(training)
        return trainer if self.attacks is None else self.attacks.by(trainer)

    def _honest_trainer(self, training: Training) -> CohortTrainer:
        if training.by_script:
            return self._of_script()
        if (made := _WITHOUT_A_MODEL.get(training.kind)) is not None:
            return made()
        if self.model is None and training.learns_from != "nothing":
            raise ConfigError("training.kind", expected="'noop' with model.kind 'vector'", got=training.kind)
        if self.cohort > 1 and training.kind in _BATCHED:
            return _BATCHED[training.kind](self.model, self.pad, self.cohort)
        make = _TRAINERS.get(training.kind) or implementation("trainers", training)
        trainer: CohortTrainer = make(self.model, self.pad)
        return trainer

    def _of_script(self) -> CohortTrainer:
        if self.script is None:
            raise ConfigError(
                "training.kind",
                expected="a method of Headwater's, where no script trains",
                got="'script'",
                hint="Start it from the script: headwater.hf.simulate, or .federate on a device.",
            )
        return self.script

    def batches(self, training: Training) -> bool:
        """Whether several clients with this training can be one batch."""
        return self.model is not None and training.kind in _BATCHED

    def require_cohorts(self) -> None:
        """Refuse ``[simulation] cohort`` where no clients can be trained as one batch.

        Raises:
            ConfigError: there is no base model, or no method that does so.
            ModelError: this model's clients cannot.
        """
        settings = self.loaded.settings
        if settings.simulation.cohort == 1:
            return
        if self.model is None or not any(t.kind in _BATCHED for t in settings.trainings.values()):
            raise ConfigError(
                "simulation.cohort",
                expected=f"a base model and training.kind {' or '.join(map(repr, _BATCHED))}",
                got=f"model.kind {settings.model.kind!r}, training.kind {settings.training.kind!r}",
                hint="Leave simulation.cohort out: clients are trained one after the other then.",
            )
        require_stackable(self.model)

    def evaluate(self, state: AdapterState, examples: Sequence[Example]) -> Measured:
        """Weight and metrics of ``state`` on ``examples``: see :mod:`headwater.training.evaluate`.

        Without a base model ``loss`` is the mean square of the values.
        """
        (found,) = self.evaluate_each([state], [examples])
        if isinstance(found, HeadwaterError):
            raise found
        return found

    def evaluate_groups(
        self, state: AdapterState, examples: Sequence[Example]
    ) -> tuple[Measured, dict[str, Measured]]:
        """:meth:`evaluate`, and the same of each group's examples: of none without ``evaluation.by``.

        With ``evaluation.answers`` both have ROUGE of answers that the model writes.
        """
        if self.model is None:
            return self.evaluate(state, examples), {}
        settings = self.loaded.settings
        measured, groups = evaluate_groups(
            self.model,
            state,
            examples,
            batch_size=settings.evaluation.batch_size,
            pad=self.pad,
            prefix_cache_bytes=settings.evaluation.trunk_cache_mb * 2**20,
        )
        if not settings.evaluation.answers:
            return measured, groups
        from headwater.training.answers import with_answers

        key = Key.root(settings.federation.seed).child("answers")
        rows = [examples[i] for i in sample(range(len(examples)), settings.evaluation.answers, key)]
        most = settings.evaluation.max_answer_tokens
        return with_answers(self.model, measured, groups, rows, max_tokens=most)

    def evaluate_each(
        self, states: Sequence[AdapterState], lots: Sequence[Sequence[Example]]
    ) -> list[Measured | HeadwaterError]:
        """:meth:`evaluate` for several owners' examples, whose rows share batches; an error in its place.

        States that differ need a model whose clients can be one batch: :meth:`require_cohorts`.
        """
        if self.model is None:
            norms = [state.norm() for state in states]
            numel = max(1, self.spec.numel)
            return [(max(1, len(own)), {"loss": n * n / numel}) for own, n in zip(lots, norms, strict=True)]
        return evaluate_each(
            self.model,
            states,
            lots,
            batch_size=self.loaded.settings.evaluation.batch_size,
            pad=self.pad,
            prefix_cache_bytes=self.loaded.settings.evaluation.trunk_cache_mb * 2**20,
        )

    def attack_success(self, state: AdapterState) -> Mapping[str, float]:
        """What attackers have reached with ``state``, on the server's held-out rows; nothing without any."""
        return {} if self.attacks is None else self.attacks.success(self, state)

    def features(self, examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        """The frozen base's features: see :func:`headwater.training.evaluate.features`.

        Raises:
            ConfigError: there is no base model.
        """
        if self.model is None:
            raise ConfigError("features", expected="a base model", got="model.kind 'vector'")
        return features(
            self.model,
            examples,
            batch_size=self.loaded.settings.evaluation.batch_size,
            pad=self.pad,
        )

    def export(
        self,
        state: AdapterState,
        folder: Path,
        card: Mapping[str, object],
        beside: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Write ``state`` as a folder: see :func:`headwater.adapters.export.export`.

        With noise in ``[privacy]`` nothing lies in it that noise does not cover: receipts count updates.
        """
        from headwater.adapters.export import export, export_vector

        if self.start is not None:
            card = {**card, "start": self.start.lineage}
        if self.loaded.settings.privacy.noised:
            card, beside = covered(card), {}
        if self.model is None:
            export_vector(state, folder, card=card, beside=beside)
        else:
            from headwater.adapters.card import how_trained

            place = self.loaded.path(self.model.base.settings.path)
            card = {**card, "how": how_trained(self.loaded.settings, place)}
            reading = self.model.reading
            if reading is not None and not reading.pairs:
                self.model.reading = replace(reading, pairs=reads_pairs(self.loaded, reading.data))
            export(self.model, state, folder, card=card, beside=beside)


_WITHOUT_A_MODEL: Mapping[str, Callable[[], CohortTrainer]] = {"noop": NoopTrainer}
_TRAINERS: Mapping[str, Callable[..., CohortTrainer]] = {
    "backprop": BackpropTrainer,
    "blackbox": BlackboxTrainer,
    "decomfl": DecomflTrainer,
    "forward_gradient": ForwardGradientTrainer,
    "kseed": KseedTrainer,
    "mezo": MezoTrainer,
    "spry": ForwardGradientTrainer,
}
"""What trains an adapted model, by ``training.kind``."""
_BATCHED: Mapping[str, Callable[..., CohortTrainer]] = {
    "backprop": BatchedBackpropTrainer,
    "decomfl": partial(BatchedLossTrainer, make=DecomflTrainer),
    "kseed": partial(BatchedLossTrainer, make=KseedTrainer),
    "mezo": partial(BatchedLossTrainer, make=MezoTrainer),
}
"""What trains several clients of it at once."""


def _of_codecs(settings: Federation, spec: StateSpec) -> tuple[str, ...]:
    """What the codecs of either way say of this adapter."""
    names, codec = [t.name for t in spec], settings.codec
    up = [f"codec.up: {notice}" for notice in codec.up.notices(names)]
    return (*up, *(f"codec.down: {notice}" for notice in codec.down.notices(names)))


def _require_positions(base: Base, settings: Federation) -> None:
    """Refuse rows that the base cannot take now, not in the round where the first long text comes up."""
    adapter, data, positions = settings.adapter, settings.data, base.positions
    virtual = 0 if adapter is None else adapter.virtual_tokens
    if positions is None or isinstance(data, NoData):
        return
    if max(data.max_tokens + virtual, data.most_targets) <= positions:
        return
    left = f", of which the adapter takes {virtual}" if virtual else ""
    raise ConfigError(
        "data.max_tokens" if data.max_tokens + virtual > positions else "data.max_target_tokens",
        expected=f"at most {positions - virtual}: {base.settings.path} has {positions} positions{left}",
        got=str(max(data.max_tokens, data.most_targets)),
        hint="Lower it; longer texts are cut or divided.",
    )
