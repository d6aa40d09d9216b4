"""PiSSA and OLoRA: LoRA that starts from the base's own directions, and still as the base."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from headwater.adapters import targets
from headwater.adapters.kinds.layers import LayerKind
from headwater.adapters.kinds.lora_sb import GRID, Floats, leading, lora_layers, require_plain_layers
from headwater.adapters.kinds.starts import zeros
from headwater.config.layer_adapters import OloraAdapter, PissaAdapter, PrincipalAdapter
from headwater.state import TensorSpec

_A, _B, _A0, _B0 = ".lora_A.weight", ".lora_B.weight", ".lora_A0", ".lora_B0"
AnyPrincipal = TypeVar("AnyPrincipal", bound=PrincipalAdapter)


class Beside(nn.Linear):
    """PEFT's A: x ↦ (A·x, A₀·x). ``weight`` is A [r, d_in], which is trained; A₀ stands still."""

    start: Tensor

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features, bias=False, **_place(like))
        self.register_buffer("start", torch.zeros_like(like.weight), persistent=False)
        self.register_load_state_dict_pre_hook(_first_rows)  # type: ignore[no-untyped-call]  # torch's

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - inherited
        return torch.cat([functional.linear(x, self.weight), functional.linear(x, self.start)], -1)


class Less(nn.Linear):
    """PEFT's B: (u, v) ↦ B·u − B₀·v. ``weight`` is B [d_out, r], which is trained; B₀ stands still."""

    start: Tensor

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features, bias=False, **_place(like))
        self.register_buffer("start", torch.zeros_like(like.weight), persistent=False)
        self.register_load_state_dict_pre_hook(_first_columns)  # type: ignore[no-untyped-call]  # torch's

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - inherited
        trained, still = x[..., : self.in_features], x[..., self.in_features :]
        return functional.linear(trained, self.weight) - functional.linear(still, self.start)


def _place(like: nn.Linear) -> dict[str, Any]:
    return {"device": like.weight.device, "dtype": like.weight.dtype}


def _first_rows(inner: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Of a saved A, which is A over A₀, take A."""
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"][: len(inner.get_parameter("weight"))]


def _first_columns(inner: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Of a saved B, which is B beside −B₀, take B."""
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"][:, : inner.get_parameter("weight").shape[1]]


class PrincipalKind(LayerKind[AnyPrincipal]):
    """ΔW = s·(B·A − B₀·A₀), which starts from B = B₀ and A = A₀: what the papers train, W itself untouched.

    The papers put W − s·B₀·A₀ in the place of W, and PEFT's folder repeats their decomposition when it is
    loaded, to whatever digits that machine gives. Here A₀ and B₀ are rounded, so that every member has the
    same, and the export is an ordinary LoRA adapter of rank 2r: (B, −B₀)·(A; A₀).
    """

    exports_itself = False
    makes = "LoraConfig"
    tensors = ((".lora_A", "lora_a", zeros), (".lora_B", "lora_b", zeros))

    def __init__(self, adapter: AnyPrincipal) -> None:
        super().__init__(adapter)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def factors(self, weight: Floats, scaling: float) -> tuple[Floats, Floats]:
        """B₀ [rows, r] and A₀ [r, columns] of a weight, alike on every machine."""

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        adapter = self.adapter
        alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
        return {"r": adapter.rank, "lora_alpha": alpha, "lora_dropout": adapter.dropout, "bias": "none"}

    def require_sound(self, who: str, peft: PeftModel, before: targets.Unadapted) -> None:  # noqa: D102 - inherited
        super().require_sound(who, peft, before)
        require_plain_layers(who, peft, self.adapter.rank)

    def prepare(self, peft: PeftModel) -> None:  # noqa: D102 - inherited
        for _, layer in lora_layers(peft):
            layer.lora_A["default"] = Beside(layer.lora_A["default"])
            layer.lora_B["default"] = Less(layer.lora_B["default"])
        config = peft.peft_config["default"]
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha  # as the export has them

    def spec(self, peft: PeftModel, name: str, parameter: Tensor) -> TensorSpec:  # noqa: D102 - inherited
        shape = tuple(parameter.shape)
        if not name.endswith(_B):
            return TensorSpec(name, shape, "lora_a" if name.endswith(_A) else "head")
        layer = peft.get_submodule(name.removesuffix(_B))
        return TensorSpec(
            name,
            shape,
            "lora_b",
            pair=name.removesuffix(_B) + _A,
            scaling=float(layer.scaling["default"]),
            transposed=isinstance(layer.get_base_layer(), Conv1D),
        )

    def stays_home(self, spec: TensorSpec, space: str) -> bool:  # noqa: D102 - inherited
        return space == "ffa" and spec.role == "lora_a"

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        found = {}
        for name, layer in lora_layers(peft):
            a, b = layer.lora_A["default"].start, layer.lora_B["default"].start
            found[name + _A0] = TensorSpec(name + _A0, tuple(a.shape), "start_a"), a
            found[name + _B0] = TensorSpec(name + _B0, tuple(b.shape), "start_b"), b
        return found

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        path = spec.name.partition(".lora_")[0]
        if path not in self._known:
            layer = peft.get_submodule(path)
            base = layer.get_base_layer()
            weight = base.weight.detach().double().cpu().numpy()
            both = self.factors(weight.T if isinstance(base, Conv1D) else weight, layer.scaling["default"])
            b, a = (torch.from_numpy(np.ascontiguousarray(factor, dtype=np.float32)) for factor in both)
            self._known[path] = b, a
        return self._known[path][spec.role in ("lora_a", "start_a")]

    def saved(self, peft: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102 - inherited
        found = {name: value for name, value in tensors.items() if not name.endswith((_A0, _B0))}
        for name, value in tensors.items():
            if name.endswith(_A0):
                trained = name.removesuffix(_A0) + _A
                found[trained] = torch.cat([tensors[trained], value])
            if name.endswith(_B0):
                trained = name.removesuffix(_B0) + _B
                found[trained] = torch.cat([tensors[trained], -value], 1)
        return found


class PissaKind(PrincipalKind[PissaAdapter]):
    """B₀ = U_r·√(S_r/s), A₀ = √(S_r/s)·V_rᵀ of the base's weight, arXiv 2404.02948, eq. 2 and 3."""

    settings = PissaAdapter

    def factors(self, weight: Floats, scaling: float) -> tuple[Floats, Floats]:  # noqa: D102 - inherited
        left, right = leading(weight, self.adapter.rank)
        sizes = np.sqrt(coarse(np.einsum("or,oi,ri->r", left, weight, right, optimize=True)) / scaling)
        return left * sizes, sizes[:, None] * right


class OloraKind(PrincipalKind[OloraAdapter]):
    """B₀ = Q_r and A₀ = R_r of the base's weight = Q·R, arXiv 2406.01775, the diagonal of R positive."""

    settings = OloraAdapter

    def factors(self, weight: Floats, scaling: float) -> tuple[Floats, Floats]:  # noqa: D102 - inherited
        basis, upper = np.linalg.qr(weight[:, : self.adapter.rank])
        basis = np.rint(basis * np.where(np.diag(upper) < 0, -1.0, 1.0) * GRID) / GRID
        return basis, coarse(basis.T @ weight)


def coarse(values: Floats) -> Floats:
    """Rounded to 2⁻¹² of the power of two above the largest: sums in another order then give the same."""
    largest = float(np.abs(values).max())
    step = 2.0 ** (np.ceil(np.log2(largest))) / GRID if largest else 1.0
    found: Floats = np.rint(values / step) * step
    return found
