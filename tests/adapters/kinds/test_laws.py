"""Every kind keeps the laws of adapter kinds."""

from typing import get_args

import pytest
import torch

from headwater.adapters.kinds.ia3 import Ia3Kind
from headwater.adapters.kinds.lora import LoraKind
from headwater.adapters.kinds.lora_sb import LoraSbKind
from headwater.adapters.kinds.p_tuning import PTuningKind
from headwater.adapters.kinds.prefix import PrefixKind
from headwater.adapters.kinds.prompt import PromptKind
from headwater.adapters.kinds.table import KINDS
from headwater.adapters.kinds.vera import VeraKind
from headwater.config.layer_adapters import LayerAdapters
from tests.laws import adapter_kind_laws
from tests.laws.adapter_kind_laws import AdapterKindLaws
from tests.support import federations

folder = adapter_kind_laws.folder


class TestLora(AdapterKindLaws):
    kind, roles, starts_as_base = LoraKind, {"lora_a", "lora_b"}, True

    def table(self, base):
        return federations.adapter("lora", base)


class TestLoraSb(AdapterKindLaws):
    kind, roles, starts_as_base, drawn = LoraSbKind, {"lora_core"}, True, False

    def table(self, base):
        return federations.adapter("lora-sb", base)


class TestDora(AdapterKindLaws):
    kind, roles, starts_as_base = LoraKind, {"lora_a", "lora_b", "dora_magnitude"}, True

    def table(self, base):
        return federations.adapter("dora", base)


class TestIa3(AdapterKindLaws):
    kind, roles, starts_as_base, drawn = Ia3Kind, {"ia3"}, True, False

    def table(self, base):
        return federations.adapter("ia3", base)


class TestPrompt(AdapterKindLaws):
    kind, roles = PromptKind, {"prompt"}

    def table(self, base):
        return federations.adapter("prompt", base)


class TestPrefix(AdapterKindLaws):
    kind, roles = PrefixKind, {"prefix"}

    def table(self, base):
        return federations.adapter("prefix", base)


class TestVera(AdapterKindLaws):
    kind, roles, starts_as_base = VeraKind, {"vera_lambda_b", "vera_lambda_d"}, True

    def table(self, base):
        return federations.adapter("vera", base)


class TestPTuning(AdapterKindLaws):
    kind, roles = PTuningKind, {"prompt_encoder"}

    def table(self, base):
        return federations.adapter("p-tuning", base)


class TestPTuningWithLstm(AdapterKindLaws):
    kind, roles, has_slopes = PTuningKind, {"prompt_encoder"}, False

    def table(self, base):
        return federations.adapter("p-tuning-lstm", base)


@pytest.mark.parametrize("kind", ["lora", "dora", "vera"])
def test_dropout_drops_in_training_and_nowhere_else(kind, folder):
    table = federations.adapter(kind, "bert", dropout=0.5)
    model = federations.adapted(federations.federation(folder, "encoder", "bert", table))
    model.load(adapter_kind_laws.elsewhere(model))
    batch = adapter_kind_laws.batch_of(model)
    with torch.no_grad():
        before = model.forward(batch).losses
        with model.training():
            dropped = model.forward(batch).losses
        after = model.forward(batch).losses
    assert not torch.allclose(dropped, before, rtol=1e-4)
    assert torch.equal(before, after)


def test_every_kind_is_here():
    tried = {
        c.kind
        for c in globals().values()
        if isinstance(c, type) and issubclass(c, AdapterKindLaws) and c is not AdapterKindLaws
    }
    # test_layer_kinds.py has the others
    assert tried == {kind for settings, kind in KINDS.items() if settings not in get_args(LayerAdapters)}
