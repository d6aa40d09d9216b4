"""``[adapter]`` of the kinds that PEFT attaches to layers, besides LoRA, IA3 and VeRA: a class each."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from headwater.config.adapter_base import BaseAdapter, LayerAdapter


class LnTuningAdapter(BaseAdapter):
    """LN-tuning (arXiv 2312.11420): norms."""

    layered: ClassVar[bool] = True
    kind: Literal["ln-tuning"]
    target_modules: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")


class BitFitAdapter(BaseAdapter):
    """BitFit (arXiv 2106.10199): the base's own biases."""

    layered: ClassVar[bool] = True
    kind: Literal["bitfit"]
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")


class BeftAdapter(LayerAdapter):
    """BEFT (arXiv 2509.15974): new biases."""

    kind: Literal["beft"]
    target_modules: tuple[str, ...] = ("value",)


class LohaAdapter(LayerAdapter):
    """LoHa, or FedPara (arXiv 2108.06098): ΔW = s·(W₁ₐ·W₁ᵦ) ⊙ (W₂ₐ·W₂ᵦ)."""

    kind: Literal["loha"]
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=8.0, gt=0)


class LokrAdapter(LayerAdapter):
    """LoKr (arXiv 2309.14859): ΔW = s·W₁ ⊗ (W₂ₐ·W₂ᵦ)."""

    kind: Literal["lokr"]
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=8.0, gt=0)
    factor: int = Field(default=-1, ge=-1, le=65_536)


class HiraAdapter(LayerAdapter):
    """HiRA (ICLR 2025): ΔW = W ⊙ (B·A)."""

    kind: Literal["hira"]
    rank: int = Field(default=32, ge=1, le=1024)


class GraloraAdapter(LayerAdapter):
    """GraLoRA (arXiv 2505.20355): a LoRA for each block of a weight."""

    kind: Literal["gralora"]
    rank: int = Field(default=32, ge=1, le=1024)
    alpha: float = Field(default=64.0, gt=0)
    blocks: int = Field(default=2, ge=1, le=64)


class DeloraAdapter(LayerAdapter):
    """DeLoRA (arXiv 2503.18225): normed directions and a strength λ."""

    kind: Literal["delora"]
    rank: int = Field(default=8, ge=1, le=1024)
    strength: float = Field(default=15.0, gt=0)


class MissAdapter(LayerAdapter):
    """MiSS (arXiv 2409.15371): inputs share one block of rows."""

    kind: Literal["miss"]
    rank: int = Field(default=64, ge=1, le=4096)


class VbloraAdapter(LayerAdapter):
    """VB-LoRA (arXiv 2405.15179): factors from one bank of vectors."""

    layered: ClassVar[bool] = False  # the bank belongs to no layer
    kind: Literal["vblora"]
    rank: int = Field(default=4, ge=1, le=1024)
    vectors: int = Field(default=256, ge=2, le=65_536)
    length: int = Field(default=256, ge=1, le=65_536)
    chosen: int = Field(default=2, ge=1, le=16)


class UniLoraAdapter(LayerAdapter):
    """Uni-LoRA (arXiv 2506.00799): all factors from one vector."""

    layered: ClassVar[bool] = False  # the vector belongs to no layer
    kind: Literal["uni-lora"]
    rank: int = Field(default=4, ge=1, le=1024)
    size: int = Field(default=256, ge=1, le=2**24)
    places_seed: int = Field(default=42, ge=0, lt=2**31)


class RandLoraAdapter(LayerAdapter):
    """RandLoRA (arXiv 2502.00987): scales of random bases that layers share."""

    kind: Literal["randlora"]
    rank: int = Field(default=32, ge=1, le=4096)
    alpha: float = Field(default=640.0, gt=0)


class OftAdapter(LayerAdapter):
    """OFT (arXiv 2306.07280): blocks of inputs are rotated."""

    kind: Literal["oft"]
    block: int = Field(default=32, ge=2, le=4096)


class HraAdapter(LayerAdapter):
    """HRA (arXiv 2405.17484): inputs are reflected r times."""

    kind: Literal["hra"]
    rank: int = Field(default=8, ge=2, le=1024, multiple_of=2)


class RoadAdapter(LayerAdapter):
    """RoAd (arXiv 2409.00119): pairs of outputs are rotated and scaled."""

    kind: Literal["road"]
    group: int = Field(default=64, ge=2, le=65_536, multiple_of=2)


class FourierFtAdapter(LayerAdapter):
    """FourierFT (arXiv 2405.03003): few coefficients of ΔW's spectrum."""

    kind: Literal["fourierft"]
    entries: int = Field(default=1000, ge=1, le=2**24)
    scale: float = Field(default=150.0, gt=0)
    places_seed: int = Field(default=777, ge=0, lt=2**31)


class WaveFtAdapter(LayerAdapter):
    """WaveFT (arXiv 2505.12532): few coefficients of ΔW's wavelets."""

    kind: Literal["waveft"]
    entries: int = Field(default=2592, ge=1, le=2**24)
    scale: float = Field(default=25.0, gt=0)
    places_seed: int = Field(default=777, ge=0, lt=2**31)


class C3aAdapter(LayerAdapter):
    """C³A (arXiv 2407.19342): circulant blocks."""

    kind: Literal["c3a"]
    block: int = Field(default=256, ge=1, le=65_536)


class ShiraAdapter(LayerAdapter):
    """SHiRA (arXiv 2406.13175): few values of each weight."""

    kind: Literal["shira"]
    rank: int = Field(default=32, ge=1, le=4096)


class AdaptionPromptAdapter(BaseAdapter):
    """LLaMA-Adapter (arXiv 2303.16199): gated prompts in the upper layers' attention."""

    layered: ClassVar[bool] = True
    kind: Literal["adaption-prompt"]
    tokens: int = Field(default=10, ge=1, le=4096)
    upper_layers: int | None = Field(default=None, ge=1, le=1024)


class PeanutAdapter(LayerAdapter):
    """PEANuT (arXiv 2410.01870): ΔW = σ(W·A)·B."""

    kind: Literal["peanut"]
    rank: int = Field(default=32, ge=1, le=1024)


class GloraAdapter(LayerAdapter):
    """GLoRA (arXiv 2306.07967): ΔW = W ⊙ A + B; biases change too."""

    kind: Literal["glora"]
    rank: int = Field(default=8, ge=1, le=1024)


class PrincipalAdapter(LayerAdapter):
    """LoRA that starts from directions of the base's weight."""

    has_factors: ClassVar[bool] = True
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=8.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def factor_rank(self) -> int:  # noqa: D102 - inherited
        return self.rank


class PissaAdapter(PrincipalAdapter):
    """PiSSA (arXiv 2404.02948): LoRA from the base's first singular vectors."""

    kind: Literal["pissa"]


class OloraAdapter(PrincipalAdapter):
    """OLoRA (arXiv 2406.01775): LoRA from the base's QR decomposition."""

    kind: Literal["olora"]


LayerAdapters = (
    PissaAdapter
    | OloraAdapter
    | AdaptionPromptAdapter
    | PeanutAdapter
    | LnTuningAdapter
    | BitFitAdapter
    | BeftAdapter
    | LohaAdapter
    | LokrAdapter
    | HiraAdapter
    | GraloraAdapter
    | GloraAdapter
    | DeloraAdapter
    | MissAdapter
    | VbloraAdapter
    | UniLoraAdapter
    | RandLoraAdapter
    | OftAdapter
    | HraAdapter
    | RoadAdapter
    | FourierFtAdapter
    | WaveFtAdapter
    | C3aAdapter
    | ShiraAdapter
)
"""All of them."""
