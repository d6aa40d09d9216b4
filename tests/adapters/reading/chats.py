"""Conversations, the tokenizers of all styles of template, and what is trained of a row."""

from headwater.adapters.reading.tokenizer import TextTokenizer
from tests.support.chat_templates import TEMPLATES, chat_tokenizer

TOKENIZERS = {style: TextTokenizer(chat_tokenizer(t), style) for style, t in TEMPLATES.items()}
MANY = 10**6


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


ONE = [user("one?"), assistant("first")]
TWO = [*ONE, user("two?"), assistant("second")]


def marked(tokenizer, sequence):
    """The text of a sequence with its loss in double brackets."""
    text, stretch, on = "", [], False
    for token, loss in [*zip(sequence.tokens, sequence.loss, strict=True), (None, None)]:
        if loss != on:
            said = tokenizer._tokenizer.decode(stretch)
            text, stretch, on = text + (f"[[{said}]]" if on else said), [], loss
        stretch.append(token)
    return text


def shown(style, messages, **more):
    tokenizer = TOKENIZERS[style]
    return [marked(tokenizer, sequence) for sequence in tokenizer.chat(messages, MANY, **more)]
