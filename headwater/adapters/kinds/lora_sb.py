"""LoRA-SB: a trained core R between two factors that stand still, ΔW = B·R·A."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Generator, Philox
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from headwater.adapters import targets
from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.config.adapter import LoraSbAdapter
from headwater.errors import ModelError
from headwater.state import TensorSpec

_RAW = ".lora_A.default.weight"
_CORE, _A, _B = ".lora_core", ".lora_A.weight", ".lora_B.weight"
GRID = 2.0**12
"""What stands still is rounded to this grid: sums in another order then give the same values."""
_WHOLE = 1 << 18
"""A weight of so many values is decomposed as it is; of a larger one the leading directions are sought."""
_BESIDE, _TURNS = 8, 3

Floats = npt.NDArray[np.float64]


class Cored(nn.Linear):
    """PEFT's A as R·A: x ↦ R·(A·x). ``weight`` is R [r, r], which is trained; A is a buffer, not saved."""

    a: Tensor

    def __init__(self, like: nn.Linear) -> None:
        rank, place = like.out_features, {"device": like.weight.device, "dtype": like.weight.dtype}
        super().__init__(rank, rank, bias=False, **place)
        self.register_buffer("a", torch.zeros_like(like.weight), persistent=False)
        self.register_load_state_dict_pre_hook(_core_of_saved)  # type: ignore[no-untyped-call]  # torch's

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - inherited
        return functional.linear(functional.linear(x, self.a), self.weight)


def _core_of_saved(inner: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Of a saved A, which is R·A, take R: what lies beside A's directions is rounding."""
    saved, a = state.get(f"{prefix}weight"), inner.get_buffer("a").double()
    if saved is not None and saved.shape == a.shape:
        core = torch.linalg.solve(a @ a.T, a @ saved.to(a).T).T
        state[f"{prefix}weight"] = core.to(saved.dtype)


class LoraSbKind(AdapterKind[LoraSbAdapter]):
    """LoRA-SB and Fed-SB (arXiv 2411.19557, 2502.15436): of ΔW = B·R·A only R [r, r] is trained and travels.

    The mean of R is the mean of the products, exactly. B and A are orthonormal, as LoRA-SB needs them, and
    are the first singular vectors of the base's weight, as in LoRA-XS (arXiv 2405.17604): LoRA-SB takes those
    of the first gradient, for which somebody must have rows beforehand. R starts as 0, so it starts as the
    base. The export is an ordinary LoRA adapter with A = R·A and s = 1.
    """

    exports_itself = False
    settings = LoraSbAdapter
    roles = ((_CORE, "lora_core"),)

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> LoraConfig:  # noqa: D102 - inherited
        adapter = self.adapter
        targets.require_targets(base, adapter.target_modules)
        targets.require_layers(base, adapter.layers)
        everything = adapter.target_modules == (targets.ALL_LINEAR,)
        chosen: str | list[str] = list(adapter.target_modules)
        if everything:
            chosen = targets.ALL_LINEAR
            if adapter.layers is not None:  # PEFT takes that word for all layers only
                chosen = sorted({name.rpartition(".")[2] for name in targets.in_layers(base, None)})
        return LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.rank,
            target_modules=chosen,
            exclude_modules=targets.saved_whole(
                base, adapter.target_modules, common.get("modules_to_save") or ()
            ),
            layers_to_transform=None if adapter.layers is None else list(adapter.layers),
            lora_dropout=adapter.dropout,
            fan_in_fan_out=targets.transposed(base, adapter.target_modules),
            bias="none",
            **common,
        )

    def require_sound(self, who: str, peft: PeftModel, before: targets.Unadapted) -> None:  # noqa: D102 - inherited
        targets.require_untied(who, peft, before)
        if self.adapter.target_modules == (targets.ALL_LINEAR,):
            targets.require_all_linear(who, peft, before.linear, self.adapter.layers)
        require_plain_layers(who, peft, self.adapter.rank)

    def prepare(self, peft: PeftModel) -> None:  # noqa: D102 - inherited
        for _, layer in lora_layers(peft):
            layer.lora_A["default"] = Cored(layer.lora_A["default"])
            layer.lora_B["default"].weight.requires_grad_(False)

    def name_of(self, parameter: str) -> str:  # noqa: D102 - inherited
        return parameter.removesuffix(_RAW) + _CORE if parameter.endswith(_RAW) else ""

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        found = {}
        for name, layer in lora_layers(peft):
            a, b = layer.lora_A["default"].get_buffer("a"), layer.lora_B["default"].weight
            found[name + _A] = TensorSpec(name + _A, tuple(a.shape), "sb_a"), a
            found[name + _B] = TensorSpec(name + _B, tuple(b.shape), "sb_b"), b
        return found

    def saved(self, peft: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102 - inherited
        found = {name: value for name, value in tensors.items() if not name.endswith(_CORE)}
        for name, core in tensors.items():
            if name.endswith(_CORE):
                a = name.removesuffix(_CORE) + _A
                found[a] = core @ tensors[a]
        return found

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role == "lora_core":
            return torch.zeros(spec.shape)
        end = _A if spec.role == "sb_a" else _B
        base = peft.get_submodule(spec.name.removesuffix(end)).get_base_layer()
        weight = base.weight.detach().double().cpu().numpy()
        left, right = leading(weight.T if isinstance(base, Conv1D) else weight, self.adapter.rank)
        return torch.from_numpy((right if spec.role == "sb_a" else left).astype(np.float32))


def leading(weight: Floats, rank: int) -> tuple[Floats, Floats]:
    """U [rows, r] and Vᵀ [r, columns], the first singular vectors of a weight, rounded to multiples of 2^-12.

    Of a large weight by subspace iteration from fixed random directions (Halko et al. 2011, arXiv 0909.4061,
    algorithm 4.4): nearly those. The largest entry of each column of U is positive.
    """
    if weight.size <= _WHOLE:
        left, _, right = np.linalg.svd(weight, full_matrices=False)
    else:
        found = Generator(Philox(key=0)).standard_normal(
            (weight.shape[1], min(rank + _BESIDE, *weight.shape))
        )
        for _ in range(_TURNS):
            found = weight.T @ np.linalg.qr(weight @ found)[0]
        basis, _ = np.linalg.qr(weight @ np.linalg.qr(found)[0])
        left, _, right = np.linalg.svd(basis.T @ weight, full_matrices=False)
        left = basis @ left
    left, right = left[:, :rank], right[:rank]
    largest = np.abs(left).argmax(axis=0)
    sign = np.where(left[largest, np.arange(rank)] < 0, -1.0, 1.0)
    return np.rint(left * sign * GRID) / GRID, np.rint(right * sign[:, None] * GRID) / GRID


def lora_layers(peft: PeftModel) -> Iterator[tuple[str, Linear]]:
    """The adapted layers, by name."""
    return ((name, layer) for name, layer in peft.named_modules() if isinstance(layer, Linear))


def require_plain_layers(who: str, peft: PeftModel, rank: int) -> None:
    """Refuse layers whose weight is no matrix of floats, or has a side shorter than the rank.

    Raises:
        ModelError: names the layer.
    """
    for name, layer in peft.named_modules():
        if hasattr(layer, "lora_A") and type(layer) is not Linear:
            raise ModelError(
                who,
                expected="target_modules that are linear layers, in floating point",
                got=f"{name}, a {type(layer).__name__}",
                hint='Use kind = "lora".',
            )
    for name, layer in lora_layers(peft):
        sides = layer.get_base_layer().weight.shape
        if rank > min(sides):
            raise ModelError(who, expected=f"a rank of at most {min(sides)}, for {name}", got=str(rank))
