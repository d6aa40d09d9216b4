import json

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from headwater.adapters.trial import try_model
from headwater.errors import ModelError
from tests.support import federations
from tests.support.architectures import build
from tests.support.tiny_models import tiny_bert, tiny_gpt2, tiny_llama, word_tokenizer

DATA = {
    "kind": "classification",
    "path": "x",
    "labels": ("a", "b"),
    "partition": {"kind": "iid", "clients": 2},
    "max_tokens": 32,
}
LORA = {"kind": "lora", "rank": 2, "target_modules": ("all-linear",)}


def model_of(folder, kind, name, table, **model):
    changes = {"model": {"kind": kind, "path": name, **model}}
    return federations.adapted(federations.federation(folder, kind, name, table, **changes))


def test_nothing_is_left_behind(tmp_path):
    model = model_of(tmp_path, "encoder", "bert", LORA)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained = [(p.requires_grad, p.grad) for p in model.network.parameters()]
    try_model(model, max_tokens=64)
    assert model.read().sha256() == model.initial_state().sha256()
    assert [(p.requires_grad, p.grad) for p in model.network.parameters()] == trained
    assert torch.equal(torch.rand(1), expected)


def test_frozen_factors_stay_frozen(tmp_path):
    loaded = federations.federation(
        tmp_path, "encoder", "bert", LORA, strategy={"kind": "mean", "space": "ffa"}
    )
    model = federations.adapted(loaded)
    try_model(model, max_tokens=64)
    trained = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert trained
    assert not any("lora_A" in name for name in trained)


@pytest.mark.parametrize("name", ["convbert", "fnet", "nystromformer"])
def test_an_encoder_that_looks_at_padding_is_refused(tmp_path, name):
    build(name, tmp_path / name)
    with pytest.raises(ModelError, match="does not depend on its padding and its neighbours"):
        try_model(model_of(tmp_path, "encoder", name, LORA), max_tokens=32)


def test_a_causal_model_that_sees_later_tokens_is_refused(tmp_path):
    """BERT's language model reads in both directions unless its configuration says decoder."""
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.1, is_decoder=True,
    )  # fmt: skip
    BertLMHeadModel(config).save_pretrained(tmp_path / "both")
    tokenizer.save_pretrained(tmp_path / "both")
    try_model(model_of(tmp_path, "causal-lm", "both", LORA), max_tokens=32)
    file = tmp_path / "both" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_decoder": False}))
    with pytest.raises(ModelError, match="is_decoder"):  # transformers warns
        model_of(tmp_path, "causal-lm", "both", LORA)
    model = model_of(tmp_path, "causal-lm", "both", LORA, accept_warnings=("is_decoder",))
    with pytest.raises(ModelError, match="do not depend on later tokens"):
        try_model(model, max_tokens=32)


@pytest.mark.parametrize(
    ("kind", "name", "table", "message"),
    [
        ("encoder", "t5", LORA, "model.kind 'encoder'.*encoder-decoder"),
        (
            "encoder",
            "modernbert",
            {"kind": "prefix", "tokens": 2},
            'no place for it. Use adapter.kind = "lora"',
        ),
        (
            "causal-lm",
            "openai-gpt",
            {"kind": "prefix", "tokens": 2},
            'no place for it. Use adapter.kind = "lora"',
        ),
    ],
)
def test_what_an_architecture_cannot_do_says_what_it_can(tmp_path, kind, name, table, message):
    build(name, tmp_path / name)
    with pytest.raises(ModelError, match=message):
        try_model(model_of(tmp_path, kind, name, table), max_tokens=32)
    if table is not LORA:
        try_model(model_of(tmp_path, kind, name, LORA), max_tokens=32)


def test_tensors_without_effect_are_named(tmp_path):
    (said,) = try_model(model_of(tmp_path, "encoder", "bert", LORA), max_tokens=32)
    assert "2 of its" in said
    assert "pooler" in said


@pytest.mark.parametrize(
    ("name", "kind", "tokens", "most"),
    [
        ("gpt2", "causal-lm", 0, 128),
        ("gpt2", "causal-lm", 3, 125),
        ("bert", "encoder", 0, 128),
        ("gptj", "causal-lm", 0, 128),
        ("gpt_neo", "causal-lm", 0, 128),
        ("longformer", "encoder", 0, 129),
        ("roberta", "encoder", 0, 129),
        ("codegen", "causal-lm", 0, 128),
    ],
)
def test_the_places_of_a_base_are_known_by_trying(tmp_path, name, kind, tokens, most):
    if name in ("gpt2", "bert"):
        {"gpt2": tiny_gpt2, "bert": tiny_bert}[name](tmp_path / name)
    else:
        build(name, tmp_path / name)
    table = {"kind": "prompt", "tokens": tokens} if tokens else LORA
    model = model_of(tmp_path, kind, name, table)
    try_model(model, max_tokens=most)
    for beyond in (most + 1, 100_000):
        with pytest.raises(ModelError, match=rf"data.max_tokens: expected at most {most}\b"):
            try_model(model, max_tokens=beyond)


def test_rotary_positions_have_no_end(tmp_path):
    tiny_llama(tmp_path / "llama")
    try_model(model_of(tmp_path, "causal-lm", "llama", LORA), max_tokens=8_192)  # made for 512


def test_tied_tensors_are_no_targets(tmp_path):
    build("llama", tmp_path / "llama", tie_word_embeddings=True)
    table = {"kind": "lora", "rank": 2, "target_modules": ("q_proj", "lm_head")}
    with pytest.raises(ModelError, match=r"got lm_head, which has the same tensor as model\.embed_tokens"):
        model_of(tmp_path, "causal-lm", "llama", table)
    build("llama", tmp_path / "untied")
    try_model(model_of(tmp_path, "causal-lm", "untied", table), max_tokens=16)


@pytest.mark.parametrize(
    ("name", "left"), [("mixtral", "experts"), ("gpt_oss", "experts"), ("deepseek_v3", "mlp")]
)
def test_all_linear_means_all(tmp_path, name, left):
    build(name, tmp_path / name)
    with pytest.raises(ModelError, match=rf"every linear layer.*PEFT leaves out, such as .*{left}"):
        model_of(tmp_path, "causal-lm", name, {**LORA, "layers": (0, 1)})
    named = {**LORA, "target_modules": ("q_b_proj",) if name == "deepseek_v3" else ("q_proj",)}
    try_model(model_of(tmp_path, "causal-lm", name, named), max_tokens=16)


def test_a_padding_token_without_a_place_is_replaced_and_masked(tmp_path):
    """A [PAD] that was added to the tokenizer alone has no row in the embedding."""
    folder = tiny_llama(tmp_path / "llama")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    tokenizer.save_pretrained(folder)
    model = model_of(tmp_path, "causal-lm", "llama", LORA)
    assert model.base.tokenizer.pad < (model.base.tokenizer.vocabulary or 0)
    try_model(model, max_tokens=16)
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"ids below 260, .*got \[END\] 261"):
        model_of(tmp_path, "causal-lm", "llama", LORA)


def test_the_end_of_a_text_counts_even_where_it_is_the_padding(tmp_path):
    """transformers reads a decoder's head at the last id that is not the pad's."""
    for name, pad in (("own", "<|pad|>"), ("same", "<|im_end|>")):
        folder = tiny_llama(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(config | {"pad_token_id": 7})
        )  # two sources for one fact
        tokens = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"pad_token": pad}))
    table = {"kind": "lora", "rank": 2, "target_modules": ("q_proj",)}
    rows = [[5, 6, 7, 3], [9, 3], [7]]
    found = []
    for name in ("own", "same"):
        model = model_of(tmp_path, "sequence-classification", name, table)
        alone = [
            model.network(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64)) for row in rows
        ]
        pad, width = model.base.tokenizer.pad, 6
        tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        torch.testing.assert_close(model.network(tokens, mask), torch.cat(alone), atol=1e-6, rtol=1e-5)
        found.append(torch.cat(alone))
    assert torch.equal(*found)


def test_it_is_tried_before_the_first_round(tmp_path):
    from headwater.training.context import TrainingContext

    build("albert", tmp_path / "albert")
    loaded = federations.federation(tmp_path, "encoder", "albert", {"kind": "prefix", "tokens": 2}, data=DATA)
    with pytest.raises(ModelError, match="no place for it"):
        TrainingContext.open(loaded)


@pytest.mark.parametrize(
    ("name", "rope", "most"),
    [
        ("llama", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}, 128),
        (
            "phi3",
            {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": [2.0] * 4,
                "short_factor": [1.0] * 4,
            },
            64,
        ),
    ],
)
@pytest.mark.parametrize("table", [LORA, {"kind": "prompt", "tokens": 3}], ids=["lora", "prompt"])
def test_positions_that_follow_the_longest_row_end_where_they_begin_to(tmp_path, name, rope, most, table):
    build(name, tmp_path / name, rope_parameters=rope, original_max_position_embeddings=64)
    model = model_of(tmp_path, "causal-lm", name, table)
    most -= table.get("tokens", 0)
    try_model(model, max_tokens=most)
    for beyond in (most + 1, 4096):
        with pytest.raises(ModelError, match=rf"at most {most}: .*depends on the longest one of its batch"):
            try_model(model, max_tokens=beyond)


WINDOW = {"sliding_window": 4}


@pytest.mark.parametrize("table", [{"kind": "prompt", "tokens": 2}, {"kind": "prefix", "tokens": 2}])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_virtual_tokens_out_of_reach_are_refused(tmp_path, name, table):
    """Each layer carries what stands before a row three tokens on, and there are two of them."""
    types = {"layer_types": ["sliding_attention"] * 2} if name == "gemma3_text" else {}
    build(name, tmp_path / name, **WINDOW, **types)
    model = model_of(tmp_path, "causal-lm", name, table)
    try_model(model, max_tokens=6)
    with pytest.raises(ModelError, match=r"at most 6 .*2 layers see 4 tokens each.*\n?.*7"):
        try_model(model, max_tokens=7)
    assert model.read().sha256() == model.initial_state().sha256()


def test_a_head_that_moved_does_not_hide_it(tmp_path):
    build("mistral", tmp_path / "mistral", **WINDOW)
    model = model_of(tmp_path, "sequence-classification", "mistral", {"kind": "prompt", "tokens": 2})
    try_model(model, max_tokens=6)
    with pytest.raises(ModelError, match="at most 6 "):
        try_model(model, max_tokens=7)


@pytest.mark.parametrize(
    ("name", "table", "changes"),
    [
        ("mistral", LORA, {}),
        ("gpt_oss", {"kind": "prompt", "tokens": 2}, {}),  # every other layer sees all
        ("qwen3", {"kind": "prompt", "tokens": 2}, {"use_sliding_window": False}),
    ],
)
def test_a_window_that_hides_nothing_is_no_matter(tmp_path, name, table, changes):
    build(name, tmp_path / name, **WINDOW, **changes)
    try_model(model_of(tmp_path, "causal-lm", name, table), max_tokens=64)


def test_positions_that_the_base_was_not_made_for_are_said(tmp_path):
    tiny_llama(tmp_path / "llama")
    model = model_of(tmp_path, "causal-lm", "llama", LORA)
    assert try_model(model, max_tokens=512) == ()
    assert "was made for 512 positions" in try_model(model, max_tokens=513)[0]


def test_a_tokenizer_of_few_words_hides_no_later_token(tmp_path):
    """Where every word of the trial becomes one id, another last word would change nothing."""
    build("gemma3_text", tmp_path / "both", use_bidirectional_attention=True)
    model = model_of(tmp_path, "causal-lm", "both", LORA)
    model.base.tokenizer.encode = lambda text, most, pair=None: [7] * 6
    with pytest.raises(ModelError, match="do not depend on later tokens"):
        try_model(model, max_tokens=32)


@pytest.mark.parametrize("pad", ["<|im_end|>", None, "own"])
def test_the_tokenizer_s_padding_does_not_change_what_an_encoder_computes(tmp_path, pad):
    """RoBERTa counts its positions from the padding id of its configuration."""
    folder = build("roberta", tmp_path / "roberta", pad_token_id=1)
    if pad != "own":
        file = folder / "tokenizer_config.json"
        content = json.loads(file.read_text()) | {"pad_token": "[SEP]" if pad else None}
        file.write_text(json.dumps(content))
    model = model_of(tmp_path, "sequence-classification", "roberta", {**LORA, "target_modules": ("query",)})
    assert model.base.model.config.pad_token_id == 1
    try_model(model, max_tokens=16)


def test_a_decoder_is_not_cut_with_its_encoder(tmp_path):
    build("bart", tmp_path / "bart")
    with pytest.raises(ModelError, match=r"model\.layers: expected a base with one stack"):
        model_of(tmp_path, "encoder", "bart", LORA, layers=1)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_has_features(tmp_path, name):
    build(name, tmp_path / name)
    model = model_of(tmp_path, "sequence-classification", name, LORA)
    tokens = torch.tensor([model.base.tokenizer.encode("a text", 16)])
    assert model.network.features(tokens, torch.ones_like(tokens)).shape == (1, 32)


def test_an_encoder_decoder_s_head_wants_the_tokenizer_s_end(tmp_path):
    folder = build("bart", tmp_path / "bart", eos_token_id=9)
    assert folder.is_dir()
    with pytest.raises(
        ModelError, match="eos_token_id 9 must be what the tokenizer ends a text with, which is 3"
    ):
        try_model(model_of(tmp_path, "sequence-classification", "bart", LORA), max_tokens=16)
