"""Which text of a pair a token belongs to, for bases that are told: :func:`separator_of`, :func:`segments`.

BERT and its kin take ``token_type_ids``: 0 for the first text, 1 for the second. A row is kept as its ids
alone, because the types follow from them: a token is of the second text if one separator stands before it.
What the tokenizer does is compared with that, and pairs are refused where it does something else.
"""

from __future__ import annotations

from torch import Tensor

from headwater.adapters.reading.tokenizer import TextTokenizer

_PROBES = (("a", None), ("a", "a"), ("a a a", "a"), ("a", "a a a"))


def separator_of(config: object, tokenizer: TextTokenizer, *, drops: bool = False) -> int | None:
    """The id by which a base's token types are known; None if it is told of none.

    Args:
        config: of the base model.
        tokenizer: its tokenizer. It refuses pairs from now on where its types are others than these.
        drops: whether PEFT passes no types on, as it does with virtual tokens of an encoder.
    """
    if (getattr(config, "type_vocab_size", 0) or 0) < 2:
        return None
    separator = tokenizer.separator
    for text, pair in _PROBES:
        ids, types = tokenizer.with_types(text, pair)
        if types is None:  # the model has types, and this tokenizer gives it none
            return None
        if separator is None or types != _types(ids, separator):
            tokenizer.refuse_pairs("token types that do not follow from its separator")
            return None
    if drops:
        tokenizer.refuse_pairs("an adapter of virtual tokens, for which PEFT drops an encoder's token types")
        return None
    return separator


def segments(tokens: Tensor, mask: Tensor, separator: int) -> Tensor:
    """Token types int64 [b, t]: 1 where exactly one ``separator`` stands before a token, else 0.

    Args:
        tokens: int64 [b, t], right-padded.
        mask: int64 [b, t]. Padding has type 0.
        separator: id of the token that ends each text.
    """
    ends = (tokens == separator).long()
    return (ends.cumsum(1) - ends == 1).long() * mask


def _types(ids: list[int], separator: int) -> list[int]:
    found, before = [], 0
    for token in ids:
        found.append(int(before == 1))
        before += token == separator
    return found
