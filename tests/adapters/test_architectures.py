"""The table of models is what the models do: every cell works to the end, or is refused with its reason."""

import importlib.util
from pathlib import Path

import pytest

from tests.support.architectures import ARCHITECTURES
from tests.support.model_cells import ADAPTERS, FEWER, KINDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "results" / "models.md"
ALWAYS = {
    "bart", "bert", "deberta-v2", "distilbert", "falcon", "gemma3_text", "gpt2", "gpt_oss", "llama", "mamba2",
    "mixtral", "modernbert", "openai-gpt", "qwen3_moe", "roberta", "rwkv", "t5",
}  # fmt: skip
"""Tried in every run of the tests; the others with the slow ones."""

spec = importlib.util.spec_from_file_location("models_reference", ROOT / "scripts" / "models_reference.py")
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def rows(adapters=ADAPTERS):
    """The lines of the table of these adapters, by architecture."""
    _, _, table = PAGE.read_text().partition(f"`causal-lm`: {', '.join(adapters)} |")
    lines = table.strip().partition("\n\n")[0].splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def said(name, kind, adapters=ADAPTERS):
    """What the table says of an architecture as a kind of model."""
    return rows(adapters)[name].split(" | ")[1 + KINDS.index(kind)].removesuffix(" |")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES]
)
def test_the_table_says_what_happens(name, kind):
    assert reference.cell(name, kind) == said(name, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", reference.SOME)
def test_the_table_of_later_kinds_says_what_happens(name, kind):
    assert reference.cell(name, kind, FEWER) == said(name, kind, FEWER)


def test_the_table_is_whole():
    table = rows()
    assert [n for n in table if n in ARCHITECTURES] == ARCHITECTURES
    assert set(ARCHITECTURES) >= ALWAYS
    assert len(ARCHITECTURES) >= 30
    assert not any("?" in line for line in [*table.values(), *rows(FEWER).values()])
    assert list(rows(FEWER)) == list(reference.SOME)
