"""Kinds whose ΔW is linear in few trained values: it starts as 0, and means of values are means of ΔW."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from peft import PeftModel
from peft.tuners.shira import Linear
from torch import Tensor

from headwater.adapters.kinds.layers import LayerKind
from headwater.adapters.kinds.starts import zeros
from headwater.config.layer_adapters import C3aAdapter, FourierFtAdapter, ShiraAdapter, WaveFtAdapter
from headwater.state import TensorSpec

_INDICES = ".shira_indices"


class DenseShira(Linear):  # type: ignore[misc]  # PEFT is untyped
    """SHiRA's layer with ΔW as an ordinary matrix: sparse ones have no forward mode and no known size."""

    def get_delta_weight(self, adapter: str) -> Tensor:  # noqa: D102 - inherited
        values: Tensor = self.shira_weight[adapter] * self.scaling[adapter]
        rows, columns = self.shira_indices[adapter].long().to(values.device)
        still = values.new_zeros(self.out_features, self.in_features)
        return still.index_put((rows, columns), values)


def _drawn(adapter: FourierFtAdapter | WaveFtAdapter) -> dict[str, Any]:
    """PEFT's options of coefficients at places that a seed draws."""
    return {
        "n_frequency": adapter.entries,
        "scaling": adapter.scale,
        "random_loc_seed": adapter.places_seed,
    }


class FourierFtKind(LayerKind[FourierFtAdapter]):
    """ΔW = scale · Re(F⁻¹(E)), E of n coefficients. The paper draws them N(0, 1); here they start as 0.

    The places are torch's permutation of integers by ``places_seed``, which PEFT draws again at loading.
    """

    settings = FourierFtAdapter
    makes = "FourierFTConfig"
    tensors = ((".fourierft_spectrum", "spectrum", zeros),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return _drawn(self.adapter)


class WaveFtKind(LayerKind[WaveFtAdapter]):
    """ΔW = scale · the inverse Haar transform of n coefficients, at places as those of FourierFT."""

    settings = WaveFtAdapter
    makes = "WaveFTConfig"
    tensors = ((".waveft_spectrum", "spectrum", zeros),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return _drawn(self.adapter)


class C3aKind(LayerKind[C3aAdapter]):
    """ΔW of circulant blocks of one side, which must divide both sides of W. The kernels start as 0."""

    settings = C3aAdapter
    makes = "C3AConfig"
    tensors = ((".c3a_kernel", "c3a_kernel", zeros),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"block_size": self.adapter.block, "init_weights": True}


class ShiraKind(LayerKind[ShiraAdapter]):
    """r·(d_in + d_out) values of W move, from 0, at places drawn from the federation's seed.

    The places stay at home; the export has them, as whole float32: PEFT, which writes integers but on
    Windows, makes integers of them.
    """

    settings = ShiraAdapter
    makes = "ShiraConfig"
    tensors = ((".shira_weight", "shira_values", zeros),)
    # torch says so once a process of any sparse tensor, as plain PEFT makes one of these places
    harmless = ("Sparse invariant checks are implicitly disabled",)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank, "random_seed": 0}

    def prepare(self, peft: PeftModel) -> None:  # noqa: D102 - inherited
        for layer in peft.modules():
            if type(layer) is Linear:
                layer.__class__ = DenseShira

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:  # noqa: D102 - inherited
        found = {}
        for name, layer in peft.named_modules():
            if isinstance(layer, Linear):
                places = layer.shira_indices["default"]
                spec = TensorSpec(name + _INDICES, tuple(places.shape), "shira_places")
                found[spec.name] = spec, places
        return found

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        if spec.role != "shira_places":
            return super().start(spec, peft, draw)
        rows, columns = peft.get_submodule(spec.name.removesuffix(_INDICES)).get_base_layer().weight.shape
        places = np.sort(draw.choice(rows * columns, spec.shape[1], replace=False, shuffle=False))
        return torch.from_numpy(np.stack([places // columns, places % columns]).astype(np.float32))
