"""GivenModel: a PEFT model that an owner's script made or is handed, held against the federation's.

What it trains must be what the federation trains, tensor by tensor, and its base the federation's, bit for
bit: before a training, because values of another model would be averaged without a word, and after it,
because a script can write to any tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import Parameter

from headwater.adapters.model import AdaptedModel
from headwater.adapters.network import Network
from headwater.adapters.trainable_names import named_trainables
from headwater.adapters.trained_tensors import unit_of
from headwater.errors import HeadwaterError, ModelError, TrainingError
from headwater.state import AdapterState, StateSpec, TensorSpec

_UNUSED = ".original_module."
"""Of a module that is trained whole PEFT keeps the first values, which compute nothing."""


@dataclass(frozen=True)
class GivenModel:
    """A model of a script's. Make it with :meth:`of` or :meth:`copy_of`.

    Args:
        network: the script's PEFT model, with the head of an encoder.
        ours: the federation's model, whose values stay out of the script's reach.
        names: of each trained tensor, by the name under which it travels, where it is in ``network``.
        who: the script's model, for messages.
    """

    network: Network
    ours: AdaptedModel
    names: dict[str, str]
    who: str

    @staticmethod
    def of(model: object, ours: AdaptedModel, *, who: str) -> GivenModel:
        """A script's own PEFT model.

        What the federation fixes by its seed (A in space ``ffa``) is set in it, and not trained.

        Args:
            model: what the script trains.
            ours: the federation's model.
            who: the script's model, for messages.

        Raises:
            ModelError: it is no PEFT model, it trains other tensors, or stands on another base; by name.
        """
        if not isinstance(model, PeftModel):
            raise ModelError(
                who, expected="a model that peft.get_peft_model made", got=type(model).__name__,
                hint="Headwater federates adapters: wrap the base with the file's [adapter] first.",
            )  # fmt: skip
        if list(model.peft_config) != ["default"]:
            got = ", ".join(model.peft_config) or "none"
            raise ModelError(who, expected="one adapter, named 'default'", got=got)
        if ours.network.head is not None:
            raise ModelError(
                who, expected="a model whose head is its own", got="model.kind 'encoder', whose head is ours",
                hint='Use model.kind = "sequence-classification", or a function (headwater.local_training).',
            )  # fmt: skip
        return _bound(Network(model, ours.network.model, None, ours.network.separator), ours, who)

    @staticmethod
    def copy_of(ours: AdaptedModel, *, who: str) -> GivenModel:
        """A copy of the federation's model, for a script that makes none."""
        return _bound(copy.deepcopy(ours.network), ours, who)

    @property
    def spec(self) -> StateSpec:
        """Of the trained tensors."""
        return self.ours.spec

    def parameters(self) -> list[tuple[TensorSpec, Parameter]]:
        """They, in the order of the spec."""
        return [(spec, self.network.get_parameter(self.names[spec.name])) for spec in self.spec]

    def load(self, state: AdapterState) -> None:
        """Set the trained tensors to ``state``, and have them and nothing else trained.

        Raises:
            SpecMismatch: another spec.
        """
        state.require_spec(self.spec, "state to load into the script's model")
        self.network.requires_grad_(False)
        with torch.no_grad():
            for spec, parameter in self.parameters():
                parameter.copy_(state[spec.name] * unit_of(spec))
                parameter.requires_grad_(True)
                parameter.grad = None

    def read(self, who: str) -> AdapterState:
        """What a training has left in the trained tensors: a copy on the CPU, float32.

        Raises:
            TrainingError: a tensor is gone, of another shape or not finite, or a weight of the base has
                changed, which is then put back.
        """
        self._require_base(who)
        values = {}
        for spec in self.spec:
            found = _tensor(self.network, self.names[spec.name])
            if found is None or tuple(found.shape) != spec.shape:
                got = "none" if found is None else f"shape {list(found.shape)}"
                expected = f"a tensor of shape {list(spec.shape)} after the training"
                raise TrainingError(f"{who}: {spec.name}", expected=expected, got=got)
            values[spec.name] = found.detach().to("cpu", torch.float32, copy=True) / unit_of(spec)
        return AdapterState(self.spec, values)

    def _require_base(self, who: str) -> None:
        for name, how in self._differences():
            self._put_back()
            raise TrainingError(
                f"{who}: {name}", expected="a weight of the base that the training leaves alone", got=how,
                hint="Only the adapter's tensors may be trained; the base has been put back.",
            )  # fmt: skip

    def _put_back(self) -> None:
        theirs, ours = self._base(self.network), self._base(self.ours.network)
        with torch.no_grad():
            for name, value in ours.items():
                if name in theirs and theirs[name].shape == value.shape:
                    theirs[name].copy_(value)

    def _differences(self) -> Iterator[tuple[str, str]]:
        """Names of tensors in which the base is not the federation's, and how."""
        theirs, ours = self._base(self.network), self._base(self.ours.network)
        for name in sorted(theirs.keys() | ours.keys()):
            mine, own = theirs.get(name), ours.get(name)
            if mine is None or own is None:
                yield name, "none" if mine is None else "one that the federation's model does not have"
            elif (mine.shape, mine.dtype) != (own.shape, own.dtype):
                yield name, f"{list(mine.shape)} of {mine.dtype}, not {list(own.shape)} of {own.dtype}"
            elif not torch.equal(mine, own.to(mine.device)):
                yield name, "other values"

    def _base(self, network: nn.Module) -> dict[str, Tensor]:
        """Everything that is not trained and computes something."""
        trained = set(self.names.values())
        return {
            name: value
            for name, value in network.state_dict().items()
            if name not in trained and _UNUSED not in name
        }


def _bound(network: Network, ours: AdaptedModel, who: str) -> GivenModel:
    """``network`` with everything about it looked at."""
    try:
        named = named_trainables(network, ours.kind)
    except HeadwaterError as error:
        raise ModelError(who, expected=error.expected, got=error.got, hint=error.hint) from error
    where = {id(parameter): name for name, parameter in network.named_parameters()}
    theirs = {name: _scaled(spec, ours) for name, (spec, _) in named.items()}
    fixed = set(ours.frozen.spec.by_name)
    _require_same(theirs, ours, fixed, who)
    with torch.no_grad():
        tensors = {**{n: p for n, (_, p) in named.items()}, **_buffers(network, ours)}
        for spec in ours.frozen.spec:
            if spec.name in tensors:
                tensors[spec.name].copy_(ours.frozen[spec.name] * unit_of(spec))
    names = {spec.name: where[id(named[spec.name][1])] for spec in ours.spec}
    given = GivenModel(network, ours, names, who)
    for name, how in given._differences():
        raise ModelError(
            f"{who}: {name}", expected=f"the value of base model {ours.base.settings.path}", got=how,
            hint="Load the base that [model] names, as it is, and attach [adapter] to it.",
        )  # fmt: skip
    return given


def _scaled(spec: TensorSpec, ours: AdaptedModel) -> TensorSpec:
    """As the federation's model counts the values of a head."""
    return replace(spec, scaling=2.0**ours.adapter.head_bits) if spec.role == "head" else spec


def _require_same(theirs: dict[str, TensorSpec], ours: AdaptedModel, fixed: set[str], who: str) -> None:
    """Refuse a model that trains other tensors than the federation's.

    Raises:
        ModelError: names the first.
    """
    hint = "Give peft.get_peft_model what the file's [adapter] says, and the task type of its [model]."
    for name in sorted(ours.spec.by_name.keys() | theirs.keys()):
        mine, own = theirs.get(name), ours.spec.by_name.get(name)
        if own is None and name in fixed:
            continue
        if mine is None:
            raise ModelError(f"{who}: {name}", expected="a tensor that is trained", got="none", hint=hint)
        if own is None:
            raise ModelError(
                f"{who}: {name}", expected="no trained tensor but the federation's", got="one", hint=hint
            )
        if mine != own:
            raise ModelError(f"{who}: {name}", expected=_said(own), got=_said(mine), hint=hint)


def _said(spec: TensorSpec) -> str:
    return f"shape {list(spec.shape)}, scaling {spec.scaling:g}, role {spec.role}"


def _buffers(network: Network, ours: AdaptedModel) -> dict[str, Tensor]:
    return {name: tensor for name, (_, tensor) in ours.kind.buffers(network.peft).items()}


def _tensor(network: nn.Module, name: str) -> Tensor | None:
    try:
        return network.get_parameter(name)
    except AttributeError:
        return None
