"""The kinds of layers keep the laws of adapter kinds; one small pass of each runs every time."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from headwater.adapters.kinds.adaption_prompt import AdaptionPromptKind
from headwater.adapters.kinds.banks import UniLoraKind, VbloraKind
from headwater.adapters.kinds.norms_and_biases import BeftKind, BitFitKind, LnTuningKind
from headwater.adapters.kinds.places import C3aKind, FourierFtKind, ShiraKind, WaveFtKind
from headwater.adapters.kinds.principal import OloraKind, PissaKind
from headwater.adapters.kinds.products import (
    DeloraKind,
    GloraKind,
    GraloraKind,
    HiraKind,
    LohaKind,
    LokrKind,
    MissKind,
    PeanutKind,
    RandLoraKind,
)
from headwater.adapters.kinds.rotations import HraKind, OftKind, RoadKind
from headwater.adapters.kinds.table import KINDS
from headwater.config.layer_adapters import LayerAdapters
from tests.laws import adapter_kind_laws
from tests.laws.adapter_kind_laws import AdapterKindLaws
from tests.support import federations
from tests.support.federations import NO_TRANSPOSED

folder = adapter_kind_laws.folder


class LayerKindLaws(AdapterKindLaws):
    starts_as_base = True
    name: str

    def table(self, base: str) -> dict[str, Any]:
        return federations.adapter(self.name, base)


class TestPissa(LayerKindLaws):
    name, kind, roles, drawn = "pissa", PissaKind, {"lora_a", "lora_b"}, False


class TestOlora(LayerKindLaws):
    name, kind, roles, drawn = "olora", OloraKind, {"lora_a", "lora_b"}, False


class TestAdaptionPrompt(LayerKindLaws):
    name, kind, roles = "adaption-prompt", AdaptionPromptKind, {"adaption_prompt", "adaption_gate"}
    tasks, bases = ("encoder", "causal-lm"), ("gpt2", "llama")


class TestPeanut(LayerKindLaws):
    name, kind, roles, bases = "peanut", PeanutKind, {"peanut_a", "peanut_b"}, NO_TRANSPOSED


class TestLnTuning(LayerKindLaws):
    name, kind, roles, drawn = "ln-tuning", LnTuningKind, {"norm"}, False


class TestBitFit(LayerKindLaws):
    name, kind, roles, drawn = "bitfit", BitFitKind, {"bias"}, False
    bases = ("bert", "roberta", "gpt2")


class TestBeft(LayerKindLaws):
    name, kind, roles, drawn, bases = "beft", BeftKind, {"bias"}, False, NO_TRANSPOSED


class TestLoha(LayerKindLaws):
    name, kind, bases = "loha", LohaKind, NO_TRANSPOSED
    has_slopes, roles = False, {f"loha_w{part}" for part in ("1_a", "1_b", "2_a", "2_b")}


class TestLokr(LayerKindLaws):
    name, kind, bases, roles = "lokr", LokrKind, NO_TRANSPOSED, {"lokr_w1", "lokr_w2"}


class TestHira(LayerKindLaws):
    name, kind, roles = "hira", HiraKind, {"hira_a", "hira_b"}


class TestGralora(LayerKindLaws):
    name, kind, roles = "gralora", GraloraKind, {"gralora_a", "gralora_b"}


class TestGlora(LayerKindLaws):
    name, kind, bases = "glora", GloraKind, NO_TRANSPOSED
    roles, with_biases = {"glora_xd", "glora_xu"}, {"glora_scalar"}
    still = (".glora_D.",)


class TestDelora(LayerKindLaws):
    name, kind, bases = "delora", DeloraKind, NO_TRANSPOSED
    starts_as_base, roles = True, {f"delora_{part}" for part in ("a", "b", "lambda")}


class TestMiss(LayerKindLaws):
    name, kind, roles, drawn, bases = "miss", MissKind, {"miss_block"}, False, NO_TRANSPOSED


class TestRandLora(LayerKindLaws):
    name, kind, roles = "randlora", RandLoraKind, {"randlora_lambda", "randlora_gamma"}
    has_slopes = False


class TestVblora(LayerKindLaws):
    name, kind, roles, starts_as_base = "vblora", VbloraKind, {"vblora_bank", "vblora_logits"}, False


class TestUniLora(LayerKindLaws):
    name, kind, roles, starts_as_base = "uni-lora", UniLoraKind, {"unilora_vector"}, False


class TestOft(LayerKindLaws):
    name, kind, roles, drawn, bases = "oft", OftKind, {"oft_r"}, False, NO_TRANSPOSED


class TestHra(LayerKindLaws):
    name, kind, roles, bases = "hra", HraKind, {"hra_u"}, NO_TRANSPOSED


class TestRoad(LayerKindLaws):
    name, kind, bases = "road", RoadKind, NO_TRANSPOSED
    drawn, roles = False, {"road_theta", "road_alpha"}


class TestFourierFt(LayerKindLaws):
    name, kind, roles, drawn = "fourierft", FourierFtKind, {"spectrum"}, False


class TestWaveFt(LayerKindLaws):
    name, kind, roles, drawn = "waveft", WaveFtKind, {"spectrum"}, False


class TestC3a(LayerKindLaws):
    name, kind, roles, drawn, bases = "c3a", C3aKind, {"c3a_kernel"}, False, NO_TRANSPOSED
    has_slopes = False


class TestShira(LayerKindLaws):
    name, kind, roles, bases = "shira", ShiraKind, {"shira_values"}, NO_TRANSPOSED


LAWS = [laws for laws in LayerKindLaws.__subclasses__() if laws.__module__ == __name__]
for laws in LAWS:
    pytest.mark.slow(laws)


@pytest.mark.parametrize("laws", LAWS, ids=lambda laws: laws.name)
def test_of_every_kind_plain_peft_computes_the_same(laws: Any, folder: Any, tmp_path: Any) -> None:
    """Also tried as when a run opens it: forward, backward, its state out and in."""
    laws().test_plain_peft_computes_the_same(folder, "encoder", "bert", tmp_path)


def test_every_kind_of_layers_is_here() -> None:
    settings = {laws.kind.settings for laws in LAWS}
    assert settings == set(get_args(LayerAdapters))
    assert settings == {kind for kind in KINDS if kind in settings}
