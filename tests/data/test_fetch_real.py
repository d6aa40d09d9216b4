"""The real archives, from the network or from ``HEADWATER_DOWNLOADS``."""

import os
from collections import Counter
from pathlib import Path

import pytest

from headwater.cli.fetch import DOWNLOADS, fetch
from headwater.data.files.formats import read_rows
from headwater.errors import DataError

pytestmark = pytest.mark.slow


def fetched(name: str, folder: Path) -> Path:
    downloads = os.environ.get(DOWNLOADS)
    try:
        fetch(name, folder, quiet=True, downloads=Path(downloads) if downloads else None)
    except DataError as error:
        if "--downloads" not in error.hint:
            raise
        pytest.skip(f"no network: {error}")
    return folder / name


def texts(path: Path) -> list[str]:
    table = read_rows(path)
    return [table.text("text", i) for i in range(len(table))]


def test_sentiment(tmp_path):
    folder = fetched("sentiment", tmp_path)
    train = read_rows(folder / "train.jsonl")
    assert Counter(train.columns["domain"]) == {"movies": 9891, "tweets": 3212, "amazon": 2767, "nyt": 2600}
    assert len(texts(folder / "test.jsonl")) == 619
    assert not set(texts(folder / "train.jsonl")) & set(texts(folder / "test.jsonl"))


def test_glosses(tmp_path):
    folder = fetched("glosses", tmp_path)
    assert set(Counter(read_rows(folder / "train.jsonl").columns["label"]).values()) == {200}
    assert set(Counter(read_rows(folder / "test.jsonl").columns["label"]).values()) == {80}
    assert not set(texts(folder / "train.jsonl")) & set(texts(folder / "test.jsonl"))


def test_presidents(tmp_path):
    folder = fetched("presidents", tmp_path)
    train = read_rows(folder / "train")
    assert len({train.stem(i) for i in range(len(train))}) == 45
    held = texts(folder / "test.jsonl")
    assert len(train) + len(held) == 237
    assert not set(texts(folder / "train")) & set(held)


def test_minilm(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = fetched("minilm", tmp_path)
    assert transformers.AutoConfig.from_pretrained(folder).num_hidden_layers == 6
    assert transformers.AutoTokenizer.from_pretrained(folder)("good")["input_ids"] == [101, 2204, 102]


def test_smollm2(tmp_path):
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = fetched("smollm2", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def loss(text: str) -> float:
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=tokens, labels=tokens).loss)

    assert loss("The capital of France is Paris, a city on the river Seine.") + 2 < loss(
        "Seine river on city a Paris is, France the capital of The."
    )


def test_instructions(tmp_path):
    folder = fetched("instructions", tmp_path)
    train, test = read_rows(folder / "train.jsonl"), read_rows(folder / "test.jsonl")
    kinds = ("question", "definition", "usage", "opposite", "category", "sentiment")
    assert Counter(train.columns["kind"]) == dict.fromkeys(kinds, 240)
    assert Counter(test.columns["kind"]) == dict.fromkeys(kinds, 60)
    asked = dict(zip(test.columns["prompt"], test.columns["answer"], strict=True))
    assert asked['What is the opposite of "sweet"?'] == "sour"
    assert not asked.keys() & set(train.columns["prompt"])
