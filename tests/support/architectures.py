"""Every architecture of transformers that people bring, built small from its configuration.

:func:`build` writes a folder of a few hundred kilobytes that ``from_pretrained`` reads, with a tokenizer,
in a few hundredths of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.support.tiny_models import byte_tokenizer, word_tokenizer

_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_ROTARY = {**_WIDE, "max_position_embeddings": 128}
_GROUPED = {**_ROTARY, "num_key_value_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {**_ROTARY, "embedding_size": 16},
    "bert": _ROTARY,
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
    },
    "big_bird": {**_ROTARY, "attention_type": "original_full"},
    "camembert": {**_ROTARY, "max_position_embeddings": 130},
    "convbert": {**_ROTARY, "embedding_size": 32, "head_ratio": 2},
    "deberta": _ROTARY,
    "deberta-v2": _ROTARY,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 128},
    "electra": {**_ROTARY, "embedding_size": 16},
    "ernie": _ROTARY,
    "esm": {**_ROTARY, "position_embedding_type": "rotary", "mask_token_id": 4},
    "eurobert": _GROUPED,
    "fnet": {**_WIDE, "max_position_embeddings": 128},
    "longformer": {**_ROTARY, "max_position_embeddings": 130, "attention_window": 8},
    "mobilebert": {**_ROTARY, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {**_ROTARY, "global_attn_every_n_layers": 2, "local_attention": 16},
    "mpnet": {**_ROTARY, "max_position_embeddings": 130},
    "nomic_bert": _ROTARY,
    "nystromformer": {**_ROTARY, "segment_means_seq_len": 8, "num_landmarks": 8},
    "rembert": {**_ROTARY, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": {**_ROTARY, "max_position_embeddings": 130},
    "roformer": {**_ROTARY, "embedding_size": 32},
    "squeezebert": {**_ROTARY, "embedding_size": 32},
    "t5": {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "xlm-roberta": {**_ROTARY, "max_position_embeddings": 130},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}  # fmt: skip
"""What people bring as ``model.kind = "encoder"``, by model type."""

DECODERS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "cohere": _GROUPED,
    "deepseek_v3": {
        **_ROTARY, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_shared_experts": 1,
    },
    "exaone4": _GROUPED,
    "falcon": {**_WIDE, "alibi": False, "new_decoder_architecture": False, "multi_query": True},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 32},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 32},
    "glm4": {**_GROUPED, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neo": {
        **_WIDE, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": _ROTARY,
    "gpt_oss": {
        **_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32,
    },
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "granite": _GROUPED,
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "llama": _GROUPED,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "head_dim": 8, "num_heads": 8,
        "n_groups": 1,
    },
    "mistral": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},
    "nemotron": _GROUPED,
    "olmo2": _GROUPED,
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    },
    "phi": {**_ROTARY, "partial_rotary_factor": 0.5},
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen2_moe": {**_GROUPED, **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "qwen3_moe": {**_GROUPED, **_EXPERTS, "num_experts": 4, "head_dim": 8},
    "qwen3_next": {
        **_GROUPED, **_EXPERTS, "num_experts": 4, "head_dim": 8, "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "smollm3": {**_GROUPED},
    "stablelm": {**_ROTARY, "num_key_value_heads": 4},
    "starcoder2": _GROUPED,
    "xglm": {
        "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 128,
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 128},
}  # fmt: skip
"""What people bring as ``model.kind = "causal-lm"``, by model type."""

ENCODER_DECODERS = ("bart", "t5")

ARCHITECTURES = sorted([*ENCODERS, *DECODERS])


def build(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    make: Any = None,
    **changes: object,
) -> Path:
    """Write a random model of type ``name``, as its pretraining leaves it, into ``folder``.

    ``tokenizer`` and ``make`` (a class ``AutoModel…``) take the place of those that the type has here.
    """
    decoder = name in DECODERS
    if tokenizer is None:
        tokenizer = byte_tokenizer(None) if decoder else word_tokenizer()
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        "initializer_range": 0.1,
    }
    config = AutoConfig.for_model(name, **{**ids, **(DECODERS if decoder else ENCODERS)[name], **changes})
    config.tie_word_embeddings = bool(changes.get("tie_word_embeddings"))
    if make is None:
        encodes = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModel
        make = AutoModelForCausalLM if decoder else encodes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = make.from_config(config)
        with torch.no_grad():  # some start with tables of zeros, in which nothing shows
            for parameter in model.parameters():
                if parameter.dim() > 1 and float(parameter.std()) < 1e-3:
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
