"""What a wrong ``[codec]`` is told, and what one is told that does nothing."""

from __future__ import annotations

import json

import pytest

from headwater.cli.main import main
from headwater.config import load_federation
from headwater.errors import ConfigError
from tests.support.federation_text import vector_text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(vector_text("t"))
    return path


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        (
            '{ kind = "chain", first = { kind = "int8" } }',
            r"codec\.up\.first: expected 'kind' out of 'topk', 'randk', got 'int8'",
        ),
        ('{ kind = "chain", first = "topk" }', r"codec\.up\.first: expected a table, got 'topk'"),
        ('{ kind = "chain", then = "int8" }', r"codec\.up\.then: expected a table, got 'int8'"),
        ('{ kind = "by-module", modules = ["*"] }', r"codec\.up\.modules\.0: expected a table, got '\*'"),
        ('{ kind = "by-module", modules = "*" }', r"codec\.up\.modules: expected a list, got '\*'"),
    ],
)
def test_parts_of_another_form_are_told_in_the_words_of_toml(file, codec, told):
    with pytest.raises(ConfigError, match=told):
        load_federation(file, [f"codec.up={codec}"])


def test_a_pattern_that_no_tensor_goes_by_is_told(file, tmp_path):
    parts = ", ".join(f'{{ pattern = "{p}", codec = {{ kind = "int8" }} }}' for p in ("*.lora_b", "v*", "*"))
    for way in ("up", "down"):
        out = tmp_path / way
        told = f'codec.{way}={{ kind = "by-module", modules = [{parts}] }}'
        assert main(["simulate", str(file), "--out", str(out), "--set", told]) == 0
        first, last = json.loads((out / "summary.json").read_text())["notices"]
        assert first.startswith(f"codec.{way}: no tensor goes by modules.0, pattern '*.lora_b'")
        assert last.startswith(f"codec.{way}: no tensor goes by modules.2, pattern '*'"), "v* has it"
