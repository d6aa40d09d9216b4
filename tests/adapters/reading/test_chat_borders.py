"""Where a prompt meets its answer: spaces and letters that a tokenizer would join are those of the whole."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headwater.adapters.reading.tokenizer import TextTokenizer
from tests.adapters.reading.chats import MANY, TWO, assistant, marked, user

LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


IN_WORDS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A:"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


def sentencepiece(scheme, template):
    """A Unigram tokenizer that writes spaces as pieces, before the first word too by its scheme."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁▁", -3.0), ("▁first", -2.0)]
    pieces += [("▁one", -2.2), ("A", -2.0), ("▁A", -2.0), (":", -2.0), ("[INST]", 0.0), ("[/INST]", 0.0)]
    known = {piece for piece, _ in pieces}
    pieces += [(c, -6.0) for c in string.ascii_letters + "?\n" if c not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=["[INST]", "[/INST]"],
    )
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("template", [LLAMA_2, IN_WORDS])
def test_spaces_before_words_are_those_of_the_whole_conversation(scheme, template):
    """Tokenising a part alone would put a space before its first word."""
    tokenizer = TextTokenizer(sentencepiece(scheme, template), "spaces")
    (sequence,) = tokenizer.chat(TWO, MANY)
    whole = tokenizer._tokenizer(
        tokenizer._tokenizer.apply_chat_template(TWO, tokenize=False), add_special_tokens=False
    )
    assert sequence.tokens == whole["input_ids"]
    starts = [n for n, on in enumerate(sequence.loss) if on and not sequence.loss[n - 1]]
    assert [sequence.tokens[:n] for n in starts] == [
        tokenizer.chat_prompt(TWO[:1]),
        tokenizer.chat_prompt(TWO[:3]),
    ]


def test_letters_that_would_join_across_the_border_are_kept_apart():
    """The prompt's last letter and the answer's first are one token of the whole, two as predict has it."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary[":y"] = len(vocabulary)
    joining = Tokenizer(models.BPE(vocabulary, merges=[(":", "y")]))
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = TextTokenizer(fast, "joining")
    row = [user("say"), assistant("yes")]
    (sequence,) = tokenizer.chat(row, MANY)
    prompt = tokenizer.chat_prompt(row[:1])
    assert sequence.tokens[: len(prompt)] == prompt
    assert marked(tokenizer, sequence) == "user:say</s>assistant:[[yes</s>]]"
    assert fast(fast.apply_chat_template(row, tokenize=False))["input_ids"][: len(prompt)] != prompt


SPACE_BEFORE_AN_ANSWER = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}"
    "{{ '\n' if m.role == 'user' else '</s>\n' }}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


LINES_BEFORE_AN_ANSWER = (
    "{% for m in messages %}{{ m.role }}:\n\n{{ m.content }}{{ '</s>' if m.role == 'assistant' }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n\n{% endif %}"
)


NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("eos", ["</s>", None])
@pytest.mark.parametrize("template", [SPACE_BEFORE_AN_ANSWER, LINES_BEFORE_AN_ANSWER, NO_END])
@settings(max_examples=25)
@given(said=st.lists(st.text("yh \n", min_size=1, max_size=4), min_size=2, max_size=6))
def test_an_earlier_answer_is_read_as_in_training_when_predict_asks_again(template, eos, said):
    """Letters that are one token of the whole stand at the border of the first prompt and its answer."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "y"), ("Ċ", "y"), ("Ċ", "Ċ"), ("ĊĊ", "h"), ("Ġ", "Ġ"), (":", "Ġ")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    joining = Tokenizer(models.BPE(vocabulary, merges=merges))
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token=eos)
    fast.chat_template = template
    tokenizer = TextTokenizer(fast, "joining")
    row = [(user, assistant)[n % 2](text) for n, text in enumerate(said[: len(said) // 2 * 2])]
    found = tokenizer.chat(row, MANY)
    for i in range(1, len(row), 2):
        prompt = tokenizer.chat_prompt(row[:i])
        assert any(
            s.tokens[: len(prompt)] == prompt and s.loss[len(prompt)] and not s.loss[len(prompt) - 1]
            for s in found
        )
