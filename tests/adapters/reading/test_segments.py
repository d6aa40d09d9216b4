"""Pairs of texts are computed as transformers computes them, whatever is beside them in a batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoTokenizer

from headwater.adapters.reading.segments import segments, separator_of
from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.errors import ModelError
from headwater.tasks.batches import Example, collate
from tests.support.federations import adapted, adapter, federation
from tests.support.tiny_models import tiny_bert, tiny_gpt2

PAIR = [("[CLS]", 2), ("[SEP]", 3)]
TEXTS = [
    ("good movie", None),
    ("the movie was bad", "not good"),
    ("bad", "the movie was not good"),
    ("a", "b"),
]


def paired(folder, pair="[CLS] $A [SEP] $B:1 [SEP]:1"):
    """A tiny BERT whose tokenizer joins pairs as BERT's does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert(folder))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=PAIR
    )
    tokenizer.save_pretrained(folder)
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    config = json.loads((folder / "tokenizer_config.json").read_text()) | names
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [("encoder", "lora"), ("encoder", "ia3")]
    + [("sequence-classification", tuning) for tuning in ("lora", "ia3", "prefix", "prompt")],
)
def test_a_pair_is_computed_with_its_token_types(tmp_path, kind, tuning):
    paired(tmp_path / "bert")
    model = adapted(federation(tmp_path, kind, "bert", adapter(tuning, "bert")))
    tokenizer, separate = model.base.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "bert")
    rows = [tokenizer.encode(text, 64, pair) for text, pair in TEXTS]
    batch = collate([Example(_array(r), _array([0])) for r in rows], tokenizer.pad)
    with torch.no_grad(), model.network.without_adapter() as base:
        ours = model.network(batch.tokens, batch.mask)
        for i, (text, pair) in enumerate(TEXTS):
            whole = separate(text, pair, return_tensors="pt")
            assert whole["input_ids"][0].tolist() == rows[i]
            given = model.network._read(batch.tokens, batch.mask)
            width = len(rows[i])
            assert torch.equal(given["token_type_ids"][i, :width], whole["token_type_ids"][0])
            out = model.network.peft(**whole, return_dict=True)
            head = model.network.head
            expected = out.logits if head is None else head(out.last_hidden_state.mean(1))
            torch.testing.assert_close(ours[i : i + 1], expected, atol=1e-5, rtol=1e-5)
            if pair is not None:  # and they matter
                plain = {k: v for k, v in whole.items() if k != "token_type_ids"}
                with_types, without = base(**whole)[0], base(**plain)[0]
                assert not torch.allclose(with_types, without, atol=1e-4)


def _array(values):
    return np.array(values, dtype=np.int64)


def test_single_texts_are_what_they_were(tmp_path):
    paired(tmp_path / "bert")
    model = adapted(federation(tmp_path, "encoder", "bert", adapter("lora", "bert")))
    assert model.network.separator == 3
    tokens = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 4, 5, 6, 7, 3]])
    mask = (tokens != 0).long()
    assert segments(tokens, mask, 3).sum() == 0
    with torch.no_grad():
        with_types = model.network(tokens, mask)
        model.network.separator = None
        assert torch.equal(with_types, model.network(tokens, mask))


def test_types_that_do_not_follow_from_the_ids_refuse_pairs(tmp_path):
    for number, template in enumerate(("[CLS] $A [SEP] $B:0 [SEP]:0", "[CLS]:1 $A [SEP] $B:1 [SEP]:1")):
        folder = paired(tmp_path / f"bert{number}", template)
        tokenizer = TextTokenizer.load(folder, "odd")
        config = AutoConfig.from_pretrained(folder)
        assert separator_of(config, tokenizer) is None
        assert tokenizer.encode("good", 8)
        with pytest.raises(
            ModelError, match=r"tokenizer of odd: expected a base model that can be shown pairs"
        ):
            tokenizer.encode("good", 8, "bad")


@pytest.mark.parametrize("tuning", ["prompt", "prefix"])
def test_an_encoder_with_virtual_tokens_takes_no_pairs(tmp_path, tuning):
    paired(tmp_path / "bert")
    model = adapted(federation(tmp_path, "encoder", "bert", adapter(tuning, "bert")))
    with pytest.raises(ModelError, match=r"for which PEFT drops an encoder's token types"):
        model.base.tokenizer.encode("good", 8, "bad")


def test_bases_without_types_take_pairs_as_their_tokenizer_joins_them(tmp_path):
    tokenizer = TextTokenizer.load(paired(tmp_path / "bert"), "tiny")
    config = AutoConfig.from_pretrained(tmp_path / "bert")
    config.type_vocab_size = 1
    assert separator_of(config, tokenizer) is None
    assert tokenizer.encode("good movie", 32, "bad movie") == [2, 4, 6, 3, 5, 6, 3]


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_tokenizer_that_runs_two_texts_together_is_refused(tmp_path, make):
    tokenizer = TextTokenizer.load(make(tmp_path / "base"), "tiny")
    assert tokenizer.encode("good", 8)
    with pytest.raises(ModelError, match=r"tokenizer of tiny: .*nothing between them"):
        tokenizer.encode("good", 8, "bad")


def test_of_a_pair_the_longer_text_is_cut(tmp_path):
    tokenizer = TextTokenizer.load(paired(tmp_path / "bert"), "tiny")
    long, short = "good " * 20, "bad"
    rows = [tokenizer.encode(long, 10, short), tokenizer.encode(short, 10, long)]
    assert [len(row) for row in rows] == [10, 10]
    assert all(row.count(3) == 2 and 5 in row for row in rows)
