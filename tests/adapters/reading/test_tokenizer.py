import itertools
import json

import pytest

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.adapters.reports import listening
from headwater.errors import ModelError
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_bert, tiny_gpt2, tiny_llama

HELLO = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say <hi>."},
    {"role": "assistant", "content": "  hi, ħ!"},
    {"role": "user", "content": "Again"},
    {"role": "assistant", "content": "hi"},
]
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llama(tmp_path, template=CHAT_TEMPLATE):
    return TextTokenizer.load(tiny_llama(tmp_path / "llama", chat_template=template), "tiny")


def chat(tokenizer, messages, max_tokens=10_000):
    (found,) = tokenizer.chat(messages, max_tokens)
    return found.tokens, found.loss


def said(tokenizer, messages, max_tokens=10_000):
    """The assistant's stretches, special tokens and all."""
    tokens, mask = chat(tokenizer, messages, max_tokens)
    assert len(tokens) == len(mask)
    text, runs = "", []
    for token, on in zip(tokens, mask, strict=True):
        if not on and text:
            runs, text = [*runs, text], ""
        text = text + tokenizer._tokenizer.convert_ids_to_tokens(token) if on else text
    return runs + ([text] if text else [])


def test_encode_and_decode(tmp_path):
    bert = TextTokenizer.load(tiny_bert(tmp_path / "bert"), "tiny")
    assert (bert.pad, bert.bos, bert.eos) == (0, None, None)
    full = bert.encode("good movie", 99)
    assert full == [2, 4, 6, 3]
    assert bert.encode_plain("good movie") == full[1:-1]
    assert bert.encode("good good good good", 4) == [2, 4, 4, 3]
    tokenizer = llama(tmp_path)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 3)
    assert tokenizer.encode("a", 9)[0] == 1
    assert tokenizer.decode(tokenizer.encode("héllo", 99)) == "héllo"
    assert len(tokenizer.encode_plain("x" * 5000)) == 5000
    gpt2 = TextTokenizer.load(tiny_gpt2(tmp_path / "gpt2"), "tiny")
    assert isinstance(gpt2.pad, int)


def test_a_tokenizer_made_for_short_texts_loads_without_a_word(tmp_path):
    path = tiny_bert(tmp_path / "bert") / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 6}))
    with listening("tiny", ()) as heard:
        TextTokenizer.load(path.parent, "tiny")
    assert not heard.notices


def test_a_tokenizer_that_draws_how_it_cuts_is_refused(tmp_path, monkeypatch):
    """Left on from its own training, it gives other rows in training, evaluation and prediction."""
    path = tiny_llama(tmp_path / "llama") / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"reads a text the same way each time, got BPE dropout 0\.1"):
        TextTokenizer.load(path.parent, "tiny")
    content["model"]["dropout"] = 0.0
    path.write_text(json.dumps(content))
    tokenizer = TextTokenizer.load(path.parent, "tiny")
    # as SentencePiece's sampling does, of which no file here tells
    backend, calls = type(tokenizer._tokenizer), itertools.count()
    plain = backend.__call__

    def drawn(self, text, *rest, **options):
        found = plain(self, text, *rest, **options)
        if len(text) > 99 and next(calls) % 4 == 3:
            found["input_ids"] = [5, *found["input_ids"]]
        return found

    monkeypatch.setattr(backend, "__call__", drawn)
    with pytest.raises(ModelError, match="other tokens for the same text"):
        TextTokenizer.load(path.parent, "tiny")


@pytest.mark.parametrize("fast", [True, False])
def test_the_assistant_says_its_answers_and_ends_its_turns(tmp_path, monkeypatch, fast):
    tokenizer = llama(tmp_path)
    tokens, mask = chat(tokenizer, HELLO, 10_000)
    if not fast:
        monkeypatch.setattr(type(tokenizer._tokenizer), "is_fast", property(lambda self: False))
    assert chat(tokenizer, HELLO, 10_000) == (tokens, mask)
    assert said(tokenizer, HELLO) == ["ĠĠhi,ĠÄ§!<|im_end|>", "hi<|im_end|>"]
    whole = tokenizer._tokenizer.apply_chat_template(HELLO, tokenize=True, return_dict=True)["input_ids"]
    assert tokens == whole


def test_it_equals_the_masks_of_marked_templates(tmp_path):
    """The oracle: transformers' own mask, for a template that marks generations."""
    tokenizer = llama(tmp_path, MARKED)
    own = tokenizer._tokenizer.apply_chat_template(
        HELLO, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = chat(tokenizer, HELLO, 10_000)
    assert tokens == own["input_ids"]
    assert [int(on) for on in mask] == own["assistant_masks"]


def test_a_prompt_is_what_comes_before_the_answer(tmp_path):
    tokenizer = llama(tmp_path)
    tokens, mask = chat(tokenizer, HELLO[:3], 10_000)
    assert tokenizer.chat_prompt(HELLO[:2]) == tokens[: mask.index(True)]


def test_cut(tmp_path):
    tokenizer = llama(tmp_path)
    tokens, mask = chat(tokenizer, HELLO, 10_000)
    assert chat(tokenizer, HELLO, 40) == (tokens[:40], mask[:40])


def test_refusals(tmp_path):
    with pytest.raises(ModelError, match=r"chat template.*got none"):
        llama(tmp_path, None).chat(HELLO, 99)
    broken = "{% for m in messages %}"
    with pytest.raises(ModelError, match="valid Jinja"):
        llama(tmp_path, broken).chat(HELLO, 99)
    raising = "{{ raise_exception('no system messages here') }}"
    with pytest.raises(ModelError, match="no system messages here"):
        llama(tmp_path, raising).chat(HELLO, 99)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="tokenizer files"):
        TextTokenizer.load(tmp_path / "empty", "tiny")
