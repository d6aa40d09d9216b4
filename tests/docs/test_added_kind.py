"""The kind of docs/how-to/add-an-adapter-kind.md, word for word, keeps the laws of adapter kinds."""

import re
import sys
import types
from pathlib import Path

import pytest

from headwater.adapters.kinds import table
from headwater.config.load import LoadedFederation
from tests.laws import adapter_kind_laws
from tests.laws.adapter_kind_laws import AdapterKindLaws
from tests.support import federations

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-adapter-kind.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[0]
NORMS = {
    "bert": ("LayerNorm",),
    "roberta": ("LayerNorm",),
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gpt2": ("ln_1", "ln_2"),
}

page = types.ModuleType("headwater_ln")
sys.modules["headwater_ln"] = page  # where pydantic looks up what annotations name
exec(compile(CODE, str(PAGE), "exec"), page.__dict__)
folder = adapter_kind_laws.folder


class TestLn(AdapterKindLaws):
    kind, roles, starts_as_base, drawn = page.LnKind, {"layer_norm"}, True, False

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch):
        monkeypatch.setitem(table.KINDS, page.LnAdapter, page.LnKind)

    def table(self, base):
        return {"kind": "ln-tuning", "target_modules": NORMS[base]}

    def federation(self, folder, task, base):
        loaded = federations.federation(folder, task, base, federations.adapter("lora", base))
        adapter = page.LnAdapter.model_validate(self.table(base))
        return LoadedFederation(loaded.settings.model_copy(update={"adapter": adapter}), loaded.folder)


def test_it_is_one_short_file():
    assert len(CODE.splitlines()) <= 120
    words = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.S).split()
    assert len(words) <= 350
