"""AdaptedModel: a frozen base with one trainable adapter, as states in and losses out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from headwater.adapters.attach import attach
from headwater.adapters.base import Base
from headwater.adapters.chunked_head import ChunkedHead
from headwater.adapters.initial import initial_value
from headwater.adapters.jvp import slope
from headwater.adapters.kinds.table import kind_of
from headwater.adapters.network import Network, new_head
from headwater.adapters.reading.segments import separator_of
from headwater.adapters.reading.settings import Reading
from headwater.adapters.shared_prefix import SharedPrefix
from headwater.adapters.start.fit import Target, values_of
from headwater.adapters.start.source import Source, open_source
from headwater.adapters.start.start import Start
from headwater.adapters.trainable_names import named_trainables
from headwater.adapters.trained_tensors import TrainedTensors, unit_of
from headwater.config import LoadedFederation
from headwater.config.adapter import Adapter
from headwater.config.model import VectorModel
from headwater.errors import ModelError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tasks.language_model import NextToken
from headwater.tasks.table import AnyTask, task_of


class Batch(Protocol):
    """Padded examples, as ``headwater.tasks.batches`` makes them."""

    @property
    def tokens(self) -> Tensor:
        """int64 [b, t]."""

    @property
    def mask(self) -> Tensor:
        """int64 [b, t]: 1 where there is a token."""

    @property
    def targets(self) -> Tensor:
        """As the task has them: [b], [b, k], or int64 [b, t] tokens aligned with ``tokens``."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass gives.

    Args:
        logits: [b, outputs], or by token [b, t, outputs] or [b, t, vocabulary].
        losses: [b] loss of each example; by token summed over its targets.
        counts: int64 [b] targets of each example: 1, or its target tokens.
    """

    logits: Tensor
    losses: Tensor
    counts: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean loss over all targets of the batch (0 if there are none)."""
        return self.losses.sum() / self.counts.sum().clamp(min=1)


def output_of(task: AnyTask, logits: Tensor, targets: Tensor) -> Output:
    """The losses of ``logits`` against ``targets``, as the task has them."""
    return Output(logits, *task.losses(logits, targets))


class AdaptedModel:
    """A frozen base with one adapter (and head). Build it with :meth:`build`.

    The model is in evaluation mode except inside :meth:`training`; the base never drops units.

    Attributes:
        spec: the tensors that are trained and travel, under the names PEFT saves them by. A ``lora_b``
            carries the pair, scaling and transposition of its product.
        kind: what ``[adapter]`` is.
        frozen: tensors of the adapter that are fixed by the key and do not travel (A in space "ffa").
        base: the base model and its settings.
        adapter: ``[adapter]``.
        reading: how its rows are read; None without data.
        task: what is learnt from rows.
        start: the adapter that it starts from; None where the seed alone says how it starts.
        notices: what the user should know of base and adapter, one sentence each.
    """

    def __init__(
        self, base: Base, adapter: Adapter, network: Network, reading: Reading | None, task: AnyTask
    ) -> None:
        self.base, self.adapter, self.network, self.reading = base, adapter, network, reading
        self._as_given = base
        self.kind = kind_of(adapter)
        self.task = task
        self.notices: tuple[str, ...] = base.notices
        self.start: Start | None = None
        self._hold(())
        self.frozen = self._initial = AdapterState(self.spec, {})

    @staticmethod
    def build(loaded: LoadedFederation, base: Base, *, key: Key) -> AdaptedModel:
        """Attach the federation's adapter to ``base`` (which is changed) in its initial state.

        Args:
            loaded: the federation.
            base: its base model, fresh from ``load_base``.
            key: where the initial values come from; every member must use the same.

        Raises:
            ModelError: target modules or layers that the model lacks, or no [adapter].
        """
        settings = loaded.settings
        adapter = settings.adapter
        if adapter is None or isinstance(settings.model, VectorModel):
            raise ModelError("model", expected="a base model and an [adapter]", got=settings.model.kind)
        start = loaded.start()
        source = None if start is None else open_source(start, str(adapter.start))
        kind, given = kind_of(adapter), base
        if kind.harmless:
            accepted = (*base.settings.accept_warnings, *kind.harmless)
            base = replace(base, settings=base.settings.model_copy(update={"accept_warnings": accepted}))
        peft, said = attach(base, kind)
        head = None
        if settings.model.pooled:
            head = new_head(peft.config.hidden_size, len(base.labels or ()), base.device)
        drops = settings.model.pooled and adapter.virtual_tokens > 0
        separator = separator_of(base.model.config, base.tokenizer, drops=drops)
        network = Network(peft, settings.model, head, separator, each_token=settings.data.needs == "tokens")
        network.keep(kind.in_place(peft))
        model = AdaptedModel(base, adapter, network, Reading.of(settings), task_of(settings.data))
        model._as_given = given
        model.notices = (*base.notices, *said)
        model._initialise(settings.strategy.space, key, source)
        return model

    def _hold(self, pairs: Sequence[tuple[TensorSpec, Parameter]]) -> None:
        """These are what is trained."""
        self._trained = TrainedTensors(pairs)
        self.spec = self._trained.spec
        layered = self.adapter.layered and not self.base.model.config.is_encoder_decoder
        self._prefix = SharedPrefix(self.network, self._trained, layered=layered, device=self.base.device)

    def _initialise(self, space: str, key: Key, source: Source | None) -> None:
        named = {
            name: (replace(spec, scaling=2.0**self.adapter.head_bits) if spec.role == "head" else spec, p)
            for name, (spec, p) in named_trainables(self.network, self.kind).items()
        }
        buffers = self.kind.buffers(self.network.peft)
        everything: dict[str, tuple[TensorSpec, Tensor]] = {**named, **buffers}
        values = {
            name: self._initial_value(spec, p, key) / unit_of(spec) for name, (spec, p) in everything.items()
        }
        if wrong := [name for name, (_, p) in named.items() if p.dtype != torch.float32]:
            raise ModelError(
                f"model.dtype '{self.base.settings.dtype}', adapter '{self.adapter.kind}'",
                expected="trained tensors that PEFT keeps in float32 beside such a base",
                got=f"{named[wrong[0]][1].dtype} for {wrong[0]}",
                hint='Use model.dtype = "float32".',
            )
        self.network.requires_grad_(False)
        self.network.eval()
        fixed = {n for n, (spec, _) in named.items() if self.kind.stays_home(spec, space)} | buffers.keys()
        self._hold([pair for name, pair in named.items() if name not in fixed])
        for _, parameter in self._trained.pairs:
            parameter.requires_grad_(True)
        if source is not None:
            fitted = values_of(source, Target(self.base, self.network, self.kind, self.spec), everything)
            values |= fitted.values
            self.notices = (*self.notices, *fitted.notices)
        self.frozen = AdapterState(
            StateSpec(tuple(everything[n][0] for n in sorted(fixed))), {n: values[n] for n in fixed}
        )
        self._initial = AdapterState(self.spec, {n: v for n, v in values.items() if n not in fixed})
        if source is not None:
            self.start = Start.of(source, self.adapter, self._initial, self.frozen)
        with torch.no_grad():
            for name, (spec, tensor) in everything.items():
                tensor.copy_(values[name] * unit_of(spec))

    def _initial_value(self, spec: TensorSpec, parameter: Tensor, key: Key) -> Tensor:
        peft, loaded = self.network.peft, None
        if spec.role == "head" and not spec.name.startswith("head."):
            below = "base_model." if peft.active_peft_config.is_prompt_learning else "base_model.model."
            loaded = None if spec.name.removeprefix(below) in self.base.fresh else parameter
        return initial_value(spec, kind=self.kind, peft=peft, key=key, loaded=loaded)

    def release(self) -> Base | None:
        """The base model without the adapter, bit for bit as it was loaded; this object is then used up.

        None for virtual tokens on a base with a head of its own: PEFT cannot take a head that it saves off
        again there. On others they stand beside the base, which knows nothing of them.
        """
        if not self.network.peft.active_peft_config.is_prompt_learning:
            self.network.restore()
            self.kind.detach(self.network.peft)
        elif self.base.settings.own_head:
            return None
        return self._as_given

    @property
    def base_sha256(self) -> str:
        """SHA-256 (hex) of the base model's files."""
        return self.base.sha256

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the head's outputs; None for a causal model."""
        return self.base.labels

    @property
    def language_model(self) -> bool:
        """Whether it has an output for each token."""
        return self.network.model.language_model

    @property
    def by_token(self) -> bool:
        """Whether its targets belong to tokens."""
        return bool(self.task.settings.by_token)

    def initial_state(self) -> AdapterState:
        """The state it was built in: a function of federation, base, key and ``adapter.start`` alone."""
        return self._initial

    @property
    def virtual_tokens(self) -> int:
        """Positions of every row that the adapter takes."""
        return self.adapter.virtual_tokens

    def saved_tensors(self, state: AdapterState) -> dict[str, Tensor]:
        """What PEFT saves of ``state``, under its names, with the head of an encoder as ``head.*``.

        What stays at home is among it.
        """
        values = {name: value * unit_of(self.spec.by_name[name]) for name, value in state.items()}
        return self.kind.saved(self.network.peft, values | dict(self.frozen))

    def load(self, state: AdapterState) -> None:
        """Set the trained tensors to ``state``.

        Raises:
            SpecMismatch: another spec.
        """
        self._trained.load(state)

    def read(self) -> AdapterState:
        """A copy of the trained tensors, on the CPU."""
        return self._trained.read()

    def write(self, vector: Tensor) -> None:
        """Set the trained tensors, in the order of :attr:`spec`, to ``vector``: float32 [spec.numel]."""
        self._trained.write(vector)

    def parameters(self) -> list[tuple[TensorSpec, Parameter]]:
        """What is trained, in the order of :attr:`spec`."""
        return list(self._trained.pairs)

    def forward(self, batch: Batch) -> Output:
        """Logits and losses of ``batch``; gradients flow if enabled by the caller."""
        tokens, mask = batch.tokens.to(self.base.device), batch.mask.to(self.base.device)
        targets = batch.targets.to(self.base.device)
        with self._prefix.skipped(batch.tokens, batch.mask):
            logits = self.network(tokens, mask, targets)
        return self.output(logits, targets)

    def slope(self, batch: Batch, direction: Tensor) -> tuple[float, float]:
        """The loss, and its derivative along ``direction``: ∇L·v, exact, by forward-mode AD.

        One pass that carries a tangent beside every value and keeps neither: no graph, no activations
        (:mod:`headwater.adapters.jvp`).

        Args:
            batch: the examples.
            direction: v, float32 [spec.numel] in the order of :attr:`spec`.

        Raises:
            ModelError: a part of the model has no forward mode.
        """
        tangents = self._trained.tangents(direction)
        # what asks the model itself must not do so among dual numbers
        _ = self._chunked_head
        self._prefix.prepare(batch.tokens, batch.mask)
        who = f"forward mode, adapter '{self.adapter.kind}' on {self.base.settings.path}"
        return slope(self.network, lambda: self.loss(batch), tangents, who=who)

    def loss(self, batch: Batch) -> Tensor:
        """``forward(batch).loss`` up to rounding, 0-dim; see :meth:`losses`."""
        losses, counts = self.losses(batch)
        return losses.sum() / counts.sum().clamp(min=1)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [b] and counts int64 [b] of :class:`Output`, for callers that want nothing else.

        A language model's logits are computed for the positions with a target, some at a time, and not
        kept: see :class:`ChunkedHead`. The caller switches gradients off.
        """
        if (chunked := self._chunked_head) is None:
            output = self.forward(batch)
            return output.losses, output.counts
        tokens, mask = batch.tokens.to(self.base.device), batch.mask.to(self.base.device)
        targets = batch.targets.to(self.base.device)
        with self._prefix.skipped(batch.tokens, batch.mask):
            return chunked.losses(tokens, mask, targets)

    @contextlib.contextmanager
    def caching_prefix(
        self, tensors: tuple[str, ...] | None = None, budget_bytes: int = 0, *, purpose: str = "training"
    ) -> Iterator[None]:
        """Inside, the layers below every trained tensor are computed once for each batch.

        For methods that ask for the losses of one batch more than once. With a budget, what reaches the
        layer above is kept for examples that come again, also in later tasks if nothing below it is ever
        trained. See :mod:`headwater.adapters.prefix_cache`.

        Args:
            tensors: only these are trained; all if None. The others must not change inside.
            budget_bytes: memory for examples that come again.
            purpose: what is kept is kept apart for each, so that one does not push out the other's.
        """
        with self._prefix.caching(tensors, budget_bytes, purpose=purpose):
            yield

    def inherit_prefix(self, earlier: AdaptedModel) -> None:
        """Use what ``earlier``, a released model on the same base, kept in :meth:`caching_prefix`."""
        self._prefix.inherit(earlier._prefix)

    @property
    def kept_bytes(self) -> int:
        """What :meth:`caching_prefix` keeps at the moment."""
        return self._prefix.kept_bytes

    def has_prefix(self, tensors: tuple[str, ...] | None = None) -> bool:
        """Whether there are layers below all of ``tensors`` (all if None) for :meth:`caching_prefix`."""
        return self._prefix.exists(tensors)

    @cached_property
    def _chunked_head(self) -> ChunkedHead | None:
        if not isinstance(self.task, NextToken):
            return None
        return ChunkedHead.of(self.network, self.task.token_losses)

    def output(self, logits: Tensor, targets: Tensor) -> Output:
        """The losses of ``logits`` against ``targets``, shapes as in :class:`Batch`."""
        return output_of(self.task, logits, targets)

    @contextlib.contextmanager
    def training(self, *, checkpointing: bool = False) -> Iterator[None]:
        """Inside, the adapter's dropout is on, and activations are recomputed if ``checkpointing``.

        The base stays without dropout. Masks come from torch's global generator: seed it.

        Raises:
            ModelError: checkpointing with an adapter that excludes it.
        """
        if checkpointing and (why := self.adapter.no_checkpoints):
            raise ModelError(
                "training.gradient_checkpointing",
                expected=f"an adapter other than '{self.adapter.kind}', {why}",
                got=f"adapter.kind '{self.adapter.kind}'",
                hint="Switch checkpointing off, or use prompt tuning.",
            )
        body = self.network.peft.get_base_model()
        active = []
        if checkpointing:
            body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            # only reentrant checkpoints need inputs with gradients, and transformers never takes them back
            body.disable_input_require_grads()
            active += [m for m in body.modules() if getattr(m, "gradient_checkpointing", False)]
        active += self.kind.dropouts(self.network.peft)
        try:
            for module in active:
                module.training = True  # not train(): their children stay as they are
            yield
        finally:
            for module in active:
                module.training = False
            if checkpointing:
                body.activation_checkpointing_disable()
