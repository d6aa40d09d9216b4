"""User text as ids: no control token comes of it, whatever the kind of tokenizer."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headwater.adapters.reading.settings import Reading
from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.config.data import CausalLMData, InstructionData
from headwater.errors import DataError, ModelError
from headwater.seeds.keys import Key
from tests.support.tiny_models import tiny_bert, tiny_gpt2, tiny_llama


def unigram():
    """As SentencePiece models are: the control tokens are pieces of the model itself."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0)]
    pieces += [(c, -6.0) for c in string.ascii_letters + string.punctuation]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def words():
    """A word is a token; the control tokens are words too."""
    known = ["<pad>", "</s>", "<unk>", "the", "film"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    made = {make.__name__: make(folder / make.__name__) for make in (tiny_bert, tiny_gpt2, tiny_llama)}
    return {
        **{name: TextTokenizer.load(path, name) for name, path in made.items()},
        "unigram": TextTokenizer(unigram(), "unigram"),
        "words": TextTokenizer(words(), "words"),
    }


KINDS = ["tiny_bert", "tiny_gpt2", "tiny_llama", "unigram", "words"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_no_control_token_comes_of_text(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    control = tokenizer._control
    names = tokenizer._tokenizer.convert_ids_to_tokens(sorted(control))
    parts = st.one_of(st.sampled_from(names), st.text("the </s>|film", max_size=6))
    text = data.draw(st.lists(parts, max_size=5).map(" ".join))
    assert not control & set(tokenizer.encode_plain(text))
    usual = [i for i in tokenizer.encode("a", 99) if i in control]
    for limit in (8, 99):
        found = tokenizer.encode(text, limit)
        assert [i for i in found if i in control] == usual
        assert len(found) <= limit
    assert tokenizer.has_control_text(text) == any(name in text for name in names)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text("the film", max_size=20))
def test_other_text_is_read_as_transformers_reads_it(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    assert tokenizer.encode(text, 9) == tokenizer._tokenizer(text, truncation=True, max_length=9)["input_ids"]
    plain = tokenizer._tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_plain(text) == plain


def test_the_text_is_kept(tokenizers):
    for kind, text in [("tiny_llama", "a<|im_end|> b"), ("tiny_gpt2", "<|bos|>x")]:
        found = tokenizers[kind].encode_plain(text)
        assert tokenizers[kind]._tokenizer.decode(found) == text
    bert = tokenizers["tiny_bert"]
    assert bert._tokenizer.decode(bert.encode("good [SEP] bad", 99)) == "[CLS] good [ sep ] bad [SEP]"
    assert tokenizers["unigram"].encode("the </s>", 99)[-1] == 1


def test_a_text_that_knows_the_names_in_the_twin_is_refused(tokenizers):
    bert = tokenizers["tiny_bert"]
    alias = bert._plain._aliases["[SEP]"]
    with pytest.raises(DataError, match=r"no control token.*\[SEP\]"):
        bert.encode(f"good [SEP] {alias} bad", 99)


def test_a_prompt_is_a_text_without_its_end(tokenizers):
    """Tokenizers that put an end after each text put none after a prompt."""
    t5 = tokenizers["unigram"]
    assert t5.encode("the", 9) == [4, 1]
    assert t5.prompt("the") == [4]
    llama = tokenizers["tiny_llama"]
    assert llama.prompt("a") == llama.encode("a", 9)


def bytes_that_name_an_unknown_token(*, said, roles):
    """As GPT-2 and SmolLM2: all text is spelled in bytes, and a token is named for what is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    model = models.BPE(vocabulary, merges=[], unk_token="<|endoftext|>" if said else None)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict.fromkeys(roles, "<|endoftext|>"))


@pytest.mark.parametrize(
    ("said", "roles"),
    [
        (False, ["unk_token"]),
        (False, ["unk_token", "eos_token", "bos_token"]),
        (True, ["unk_token", "eos_token"]),
        (True, ["unk_token", "pad_token"]),
    ],
)
def test_a_token_for_unknown_text_that_no_text_becomes_is_a_control_token(said, roles):
    own = bytes_that_name_an_unknown_token(said=said, roles=roles)
    tokenizer = TextTokenizer(own, "bytes")
    assert own("a<|endoftext|>b")["input_ids"].count(0) == 1
    for found in (tokenizer.encode_plain("a<|endoftext|>b"), tokenizer.encode("a<|endoftext|>b", 99)):
        assert 0 not in found
        assert len(found) == 15
    assert tokenizer.has_control_text("a<|endoftext|>b")


def test_a_token_that_unknown_text_becomes_is_text(tokenizers):
    for kind, text in [("tiny_bert", "zebra \u2603"), ("unigram", "the \u2603"), ("words", "the zebra")]:
        tokenizer = tokenizers[kind]
        assert tokenizer._tokenizer.unk_token_id in tokenizer.encode_plain(text)
        assert not tokenizer.has_control_text(tokenizer._tokenizer.unk_token)


@pytest.mark.parametrize("before", [[], ["<s>"], ["</s>"], ["[gMASK]", "<sop>"], ["<lang>", "<s>"]])
@pytest.mark.parametrize("after", [[], ["</s>"]])
def test_what_the_tokenizer_puts_before_a_text_stands_before_a_running_text(before, after):
    """GLM and XGLM begin a text with tokens that are not named as its beginning."""
    special = ["<s>", "</s>", "[gMASK]", "<sop>", "<lang>"]
    vocabulary = {t: i for i, t in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    own = Tokenizer(models.BPE(vocabulary, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[(t, vocabulary[t]) for t in {*before, *after}]
    )
    tokenizer = TextTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=own,
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=special[2:],
        ),
        "begun",
    )
    ids = [vocabulary[t] for t in before]
    assert tokenizer.prompt("") == ids
    assert tokenizer.prompt("the <s>") == [*ids, *tokenizer.encode_plain("the <s>")]
    assert tokenizer.prompt("aa") + [vocabulary[t] for t in after] == tokenizer.encode("aa", 99)
    assert tokenizer.bos == (0 if before[:1] == ["<s>"] else None)
    if before:
        with pytest.raises(ModelError, match=r"ids below 1, .*got.* [1-4]"):
            tokenizer.fit(1)


@pytest.mark.parametrize(
    "change",
    [{"template_sha256": "0" * 64}, {"template_arguments": {"enable_thinking": False}}, {"ends": [7]}],
)
def test_an_adapter_of_chats_is_not_asked_in_other_turns_than_it_learnt(tokenizers, change):
    place = {"path": "-", "partition": {"kind": "files"}}
    data = InstructionData.model_validate({"kind": "instruction", "max_tokens": 8, **place})
    notes = Reading(data, 4, Key(bytes(32))).notes(tokenizers["tiny_llama"])
    assert Reading.read(notes, tokenizers["tiny_llama"], "adapter").data == data
    notes["chat"] |= change
    with pytest.raises(ModelError, match="the chat template's turns as in training"):
        Reading.read(notes, tokenizers["tiny_llama"], "adapter")


def test_an_adapter_of_running_text_remembers_what_stood_before_it(tokenizers):
    place = {"path": "-", "partition": {"kind": "files"}}
    data = CausalLMData.model_validate({"kind": "causal-lm", "max_tokens": 8, **place})
    notes = Reading(data, 4, Key(bytes(32))).notes(tokenizers["tiny_llama"])
    assert notes["begins"] == [tokenizers["tiny_llama"].bos]
    assert Reading.read(notes, tokenizers["tiny_llama"], "adapter").data == data
    with pytest.raises(ModelError, match=r"puts the ids \[1\] before a text, as in training.*puts \[\]"):
        Reading.read(notes, tokenizers["words"], "adapter")
