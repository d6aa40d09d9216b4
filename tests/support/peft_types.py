"""What becomes of every kind that PEFT has: :data:`TAKEN`, :data:`PARTLY`, :data:`NOT_TAKEN`. No torch."""

from __future__ import annotations

from collections.abc import Mapping

TAKEN: Mapping[str, tuple[str, ...]] = {
    "ADAPTION_PROMPT": ("adaption-prompt",),
    "BEFT": ("beft",),
    "C3A": ("c3a",),
    "DELORA": ("delora",),
    "FOURIERFT": ("fourierft",),
    "GLORA": ("glora",),
    "GRALORA": ("gralora",),
    "HIRA": ("hira",),
    "HRA": ("hra",),
    "IA3": ("ia3",),
    "LN_TUNING": ("ln-tuning",),
    "LOHA": ("loha",),
    "LOKR": ("lokr",),
    "LORA": ("lora", "pissa", "olora", "lora-sb", "bitfit"),
    "MISS": ("miss",),
    "OFT": ("oft",),
    "PEANUT": ("peanut",),
    "PREFIX_TUNING": ("prefix",),
    "PROMPT_TUNING": ("prompt",),
    "P_TUNING": ("p-tuning",),
    "RANDLORA": ("randlora",),
    "ROAD": ("road",),
    "SHIRA": ("shira",),
    "UNILORA": ("uni-lora",),
    "VBLORA": ("vblora",),
    "VERA": ("vera",),
    "WAVEFT": ("waveft",),
}
"""A member of ``peft.PeftType`` → the kinds that make or export one."""
PARTLY: Mapping[str, str] = {"TRAINABLE_TOKENS": "`lora` with `trainable_token_indices`"}
"""A member of ``peft.PeftType`` → what does the same."""
NOT_TAKEN: Mapping[str, str] = {
    "ADALORA": "each client would cut other ranks",
    "ADAMSS": "fixed parts are torch's SVD, not alike everywhere",
    "BOFT": "without its CUDA extension it is OFT",
    "CARTRIDGE": "a `prefix` but for its start, a forward pass that is not alike everywhere",
    "CPT": "its forward pass changes what is trained",
    "DEFT": "starts as a product with W, not alike everywhere",
    "FROD": "as ADAMSS",
    "LILY": "rows depend on their neighbours",
    "MULTITASK_PROMPT_TUNING": "batches need task ids",
    "OSF": "as ADAMSS",
    "POLY": "batches need task ids",
    "PSOFT": "as ADAMSS",
    "PVERA": "its forward pass draws noise",
    "SHADOW": "fails on BERT, Llama and GPT-2",
    "SUPERTUNING": "places are torch's top-k of |W|, not alike everywhere where values tie",
    "TINYLORA": "as ADAMSS",
    "XLORA": "mixes adapters that must be finished before",
}
"""A member of ``peft.PeftType`` → why no kind makes one."""
