"""Tiny random base models on disk, with tokenizers, so that no test needs a download.

:func:`tiny_bert` and the others write a folder that ``from_pretrained`` reads (two layers, hidden size 32,
safetensors), in milliseconds, with the same weights every time.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_bert(folder: Path, *, seed: int = 0, layers: int = 2) -> Path:
    """A random BERT encoder with a WordPiece tokenizer that spells any lower-case text."""
    fast = word_tokenizer()
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    return _save(folder, seed, lambda: BertModel(config), fast)


def tiny_electra(folder: Path, *, seed: int = 0) -> Path:
    """A random ELECTRA, in which a linear layer stands between the embeddings and the stack."""
    fast = word_tokenizer()
    config = ElectraConfig(
        vocab_size=len(fast),
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    return _save(folder, seed, lambda: ElectraModel(config), fast)


def tiny_roberta(folder: Path, *, seed: int = 0) -> Path:
    """A random RoBERTa as pretraining leaves it: no pooler, and a classifier of two layers to be made."""
    fast = word_tokenizer()
    config = RobertaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.1,
    )
    return _save(folder, seed, lambda: RobertaForMaskedLM(config), fast)


def tiny_masked(folder: Path, *, seed: int = 0) -> Path:
    """A random BERT that tells hidden tokens, with pairs and a token for what is hidden."""
    fast = word_tokenizer(mask=True)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    return _save(folder, seed, lambda: BertForMaskedLM(config), fast)


def tiny_t5(folder: Path, *, seed: int = 0) -> Path:
    """A random T5, an encoder and a decoder, with a byte-level tokenizer that ends every text."""
    fast = byte_tokenizer(None, ends=True)
    config = T5Config(
        vocab_size=len(fast),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=False,
    )
    return _save(folder, seed, lambda: T5ForConditionalGeneration(config), fast)


def tiny_bart(folder: Path, *, seed: int = 0) -> Path:
    """A random BART, whose positions are learnt and whose answers begin with the token that ends one."""
    fast = byte_tokenizer(None, ends=True)
    config = BartConfig(
        vocab_size=len(fast),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        decoder_start_token_id=fast.eos_token_id,
        forced_eos_token_id=None,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        init_std=0.1,
    )
    return _save(folder, seed, lambda: BartForConditionalGeneration(config), fast)


def tiny_llama(
    folder: Path, *, seed: int = 0, layers: int = 2, chat_template: str | None = CHAT_TEMPLATE
) -> Path:
    """A random Llama with a byte-level tokenizer (any text) and a ChatML template."""
    fast = byte_tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.1,
    )
    return _save(folder, seed, lambda: LlamaForCausalLM(config), fast)


def tiny_gpt2(folder: Path, *, seed: int = 0) -> Path:
    """A random GPT-2, whose linear layers (Conv1D) store their weights transposed."""
    fast = byte_tokenizer(None)
    config = GPT2Config(
        vocab_size=len(fast),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.1,
    )
    return _save(folder, seed, lambda: GPT2LMHeadModel(config), fast)


def word_tokenizer(*, mask: bool = False) -> PreTrainedTokenizerFast:
    """Words in pieces; with ``mask`` also a token for what is hidden."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "movie", "the", "was", "not"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces += list(letters) + [f"##{letter}" for letter in letters] + ["[MASK]"] * mask
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **({"mask_token": "[MASK]"} if mask else {}),
    )


def byte_tokenizer(chat_template: str | None, *, ends: bool = False) -> PreTrainedTokenizerFast:
    """Bytes after a beginning; with ``ends`` before an end instead."""
    specials = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>" if ends else "<|bos|> $A", special_tokens=[("<|bos|>", 1), ("<|im_end|>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = chat_template
    return fast


def _save(folder: Path, seed: int, make: object, tokenizer: PreTrainedTokenizerFast) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = make()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
