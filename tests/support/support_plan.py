"""Which cells the support table has: :func:`planned`. No torch."""

from __future__ import annotations

from typing import NamedTuple

KINDS = (
    "lora", "pissa", "olora", "lora-sb", "vera", "randlora", "loha", "lokr", "hira", "gralora", "glora",
    "delora", "miss", "peanut", "vblora", "uni-lora", "oft", "hra", "road", "fourierft", "waveft", "c3a",
    "shira", "ia3", "bitfit", "beft", "ln-tuning", "prompt", "p-tuning", "prefix", "adaption-prompt",
)  # fmt: skip
TASKS = (
    "classification", "regression", "multi-label", "token-classification", "extractive-qa", "masked-lm",
    "seq2seq", "causal-lm", "instruction",
)  # fmt: skip
ENCODERS = (
    "albert", "bert", "convbert", "deberta-v2", "distilbert", "electra", "esm", "modernbert", "mpnet",
    "roberta",
)  # fmt: skip
DECODERS = (
    "bloom", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "lfm2", "llama", "mamba",
    "mistral", "mixtral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
)  # fmt: skip
ENCODER_DECODERS = ("bart", "t5")
ARCHITECTURES = (*ENCODERS, *DECODERS, *ENCODER_DECODERS)
ON_ONE = (
    ("bert", "classification"), ("bert", "token-classification"), ("bert", "masked-lm"),
    ("llama", "causal-lm"), ("llama", "classification"), ("t5", "seq2seq"), ("t5", "classification"),
)  # fmt: skip
"""On these every kind is tried: one for each way in which a model's outputs are had.
The other tasks' losses see the same outputs: regression's those of classification, extractive-qa's those of
token-classification."""


class Cell(NamedTuple):
    """What is tried: the model's type, ``model.kind``, ``data.kind`` and ``adapter.kind``."""

    architecture: str
    model: str
    data: str
    adapter: str


def natural(name: str) -> str:
    """The ``data.kind`` that people take this architecture for."""
    if name in ENCODER_DECODERS:
        return "seq2seq"
    return "classification" if name in ENCODERS else "causal-lm"


def model_for(name: str, data: str) -> str:
    """The ``model.kind`` of a task on an architecture; rows of an encoder-decoder go to its own head."""
    kinds = {
        "masked-lm": "masked-lm",
        "seq2seq": "seq2seq",
        "causal-lm": "causal-lm",
        "instruction": "causal-lm",
    }
    by_row = ("classification", "regression", "multi-label")
    own_head = name in ENCODER_DECODERS and data in by_row
    return kinds.get(data, "sequence-classification" if own_head else "encoder")


def cell(name: str, data: str, adapter: str) -> Cell:
    """The cell of an architecture, a task and a kind."""
    return Cell(name, model_for(name, data), data, adapter)


def planned() -> list[Cell]:
    """Every cell, those of one base together."""
    cells = {cell(name, natural(name), kind) for name in ARCHITECTURES for kind in KINDS}
    cells |= {cell(name, task, "lora") for name in ARCHITECTURES for task in TASKS}
    cells |= {cell(name, task, kind) for name, task in ON_ONE for kind in KINDS}
    return sorted(cells, key=lambda c: (c.architecture, c.model, c.data, KINDS.index(c.adapter)))
