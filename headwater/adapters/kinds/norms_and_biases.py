"""Kinds that train what stands beside a base's matrices: norms and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.random import Generator
from peft import LNTuningConfig, LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from headwater.adapters import targets
from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.layers import LayerKind
from headwater.adapters.kinds.starts import zeros
from headwater.config.layer_adapters import BeftAdapter, BitFitAdapter, LnTuningAdapter
from headwater.errors import ModelError
from headwater.merging.coverage import layer_of
from headwater.state import TensorSpec

_LN, _BIAS = ".ln_tuning_layers", "bias"


class LnTuningKind(AdapterKind[LnTuningAdapter]):
    """It starts as the base's own norms: those of the numbered layers, or those that are named."""

    settings = LnTuningAdapter
    roles = ((_LN, "norm"),)
    harmless = ("Unsupported layer type",)  # PEFT does not know the sizes of a norm, and needs none

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> LNTuningConfig:  # noqa: D102 - inherited
        targets.require_layers(base, self.adapter.layers)
        return LNTuningConfig(target_modules=_norms(base, self.adapter), **common)

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        path, _, part = spec.name.partition(f"{_LN}.")
        original: Tensor = getattr(peft.get_submodule(path).get_base_layer(), part)
        return original.detach().float().cpu().clone()


def _norms(base: Base, adapter: LnTuningAdapter) -> list[str]:
    """Full names of the norms to train.

    Raises:
        ModelError: the file names what is no norm, or there is none.
    """
    names = [name for name, module in base.model.named_modules() if _is_norm(module)]
    wanted = adapter.target_modules
    for target in wanted:
        if not any(_named(name, target) for name in names):
            existing = sorted({name.rpartition(".")[2] for name in names})
            raise ModelError(
                f"adapter.target_modules of {base.settings.path}",
                expected=f"names of norms: {', '.join(existing)}",
                got=repr(target),
            )
    if wanted:
        names = [name for name in names if any(_named(name, target) for target in wanted)]
    if not wanted or adapter.layers is not None:
        names = _in_layers(names, adapter.layers)
    if not names:
        raise ModelError(f"adapter 'ln-tuning' on {base.settings.path}", expected="a norm", got="none")
    return names


def _is_norm(module: nn.Module) -> bool:
    """Whether it scales by one vector: a layer norm, or one of the many classes of RMS norms."""
    own = dict(module.named_parameters(recurse=False))
    return "Norm" in type(module).__name__ and "weight" in own and all(p.dim() == 1 for p in own.values())


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _in_layers(names: Sequence[str], layers: Sequence[int] | None) -> list[str]:
    """Those in numbered layers: in these, or in all if None."""
    return [n for n in names if (k := layer_of(n)) is not None and (layers is None or k in layers)]


class BeftKind(LayerKind[BeftAdapter]):
    """y = W·x + b + v: v is trained and starts as 0, so it starts as the base."""

    settings = BeftAdapter
    makes = "BeftConfig"
    tensors = ((".beft_bias", "bias", zeros),)
    # plain PEFT, and headwater's merged export, add it all the same
    harmless = ("Detected that the base layer has no bias term",)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {}


class BitFitKind(AdapterKind[BitFitAdapter]):
    """The biases of the numbered layers, norms' too, are trained as they stand in the base.

    PEFT has no such adapter by itself. The export is a LoRA folder with ``bias = "all"`` and one product of
    zeros, of rank 1 in one layer: plain PEFT loads it, and it computes the same.
    """

    settings = BitFitAdapter
    # the network itself puts the base's own biases back where it computes without the adapter
    harmless = ("disabling adapter layers with bias configured to be",)

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> LoraConfig:  # noqa: D102 - inherited
        targets.require_layers(base, self.adapter.layers)
        named = base.model.named_parameters()
        if not _in_layers([name for name, _ in named if name.endswith(_BIAS)], self.adapter.layers):
            raise ModelError(
                f"adapter 'bitfit' on {base.settings.path}",
                expected="a base whose layers have biases",
                got="none",
                hint='Use kind = "beft", which adds some, or "ln-tuning".',
            )
        carrier = targets.in_layers(base, self.adapter.layers)[0]
        return LoraConfig(
            r=1,
            lora_alpha=1,
            target_modules=[carrier],
            fan_in_fan_out=targets.transposed(base, [carrier]),
            bias="all",
            **common,
        )

    def prepare(self, peft: PeftModel) -> None:  # noqa: D102 - inherited
        trained, heads = set(self.in_place(peft)), _saved_modules(peft)
        for name, parameter in peft.named_parameters():
            head = name.startswith(heads) and ".original_module." not in name
            parameter.requires_grad_(head or name in trained)

    def in_place(self, peft: PeftModel) -> list[str]:  # noqa: D102 - inherited
        names = [n for n, _ in peft.named_parameters() if n.endswith(_BIAS)]
        return _in_layers([n for n in names if not n.startswith(_saved_modules(peft))], self.adapter.layers)

    def spec(self, peft: PeftModel, name: str, parameter: Tensor) -> TensorSpec:  # noqa: D102 - inherited
        return TensorSpec(name, tuple(parameter.shape), _BIAS if name in self.in_place(peft) else "head")

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        (name, layer), *_ = [(n, m) for n, m in peft.named_modules() if isinstance(m, LoraLayer)]
        found: dict[str, tuple[TensorSpec, Tensor]] = {}
        for part, factor in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            weight = factor["default"].weight
            spec = TensorSpec(f"{name}.{part}.weight", tuple(weight.shape), "lora_zero")
            found[spec.name] = spec, weight
        return found

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role != _BIAS:
            return torch.zeros(spec.shape)
        own: Tensor = peft.get_parameter(spec.name)
        return own.detach().float().cpu().clone()


def _saved_modules(peft: PeftModel) -> tuple[str, ...]:
    """What the names of parameters of heads, which PEFT saves whole, begin with."""
    return tuple(f"{n}." for n, m in peft.named_modules() if isinstance(m, ModulesToSaveWrapper))
