"""What each runtime does with each trait of an adapter: :data:`RUNTIMES`, with versions and sources.

Of every trait of :data:`headwater.adapters.serving.traits.TRAITS` a runtime says what it does with a folder
as PEFT writes it, and what :func:`headwater.adapters.serving.export.export_for` does about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headwater.adapters.serving import traits as t

OK, SILENT, REFUSES = "ok", "wrong, nothing said", "refuses"
"""What a runtime does with a trait: as it should, other numbers without a word, or an error."""
AS_IS, BAKED, PADDED, APART, REFUSED = "as it is", "baked", "padded", "apart", "refused"
"""What an export does about it: nothing, s into B, zeros to one rank, the head in a file beside, an error."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What becomes of a trait.

    Args:
        untouched: with the folder as it is.
        remedy: by an export.
        why: of both, for the reader.
    """

    untouched: str
    remedy: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One that serves adapters.

    Args:
        name: as ``--for`` has it.
        version: that was looked at.
        source: by what.
        reads: what it takes.
        folder: whether it reads PEFT's folder itself.
        facts: by trait.
        remarks: what goes wrong beside the adapter's traits, a sentence each.
    """

    name: str
    version: str
    source: str
    reads: str
    folder: bool
    facts: Mapping[str, Fact]
    remarks: tuple[str, ...] = ()


_FINE = Fact(OK, AS_IS)
_MERGE = "merge it into its base: --for merged"
_BAKE = Fact(SILENT, BAKED, "reads alpha/r of the config for all weights")
_NO = Fact(REFUSES, REFUSED, _MERGE)
_DROPS = Fact(SILENT, REFUSED, f"drops it; {_MERGE}")
_ACTIVATED = Fact(REFUSES, REFUSED, "PEFT alone computes it")
_STARTED = Fact(
    REFUSES, REFUSED, "convert it in PEFT: save_pretrained(path_initial_model_for_weight_conversion=…)"
)
_APART = Fact(REFUSES, APART, "serve embeddings, and apply head.safetensors to them")

_PEFT = dict.fromkeys(t.TRAITS, _FINE)
_PEFT[t.POOLED] = Fact(SILENT, AS_IS, "does not load head.safetensors: README.md has the lines that apply it")

_FACTORS: dict[str, Fact] = {
    t.SCALED: _FINE,
    t.RSLORA: _FINE,
    t.MIXED_SCALES: _FINE,
    t.MIXED_RANKS: _FINE,
    t.FRACTIONAL: _FINE,
    t.LARGE: _FINE,
    t.DORA: _NO,
    t.FACTOR_BIAS: _NO,
    t.BASE_BIAS: _NO,
    t.HEAD: _APART,
    t.POOLED: Fact(SILENT, APART, "serve embeddings, and apply head.safetensors to their mean"),
    t.WHOLE: _NO,
    t.TOKENS: _NO,
    t.EMBEDDING: _NO,
    t.EXPERTS: _NO,
    t.CONVOLUTION: _NO,
    t.ADALORA: Fact(REFUSES, BAKED, "E goes into B"),
    t.STARTED: _STARTED,
    t.ACTIVATED: _ACTIVATED,
}
"""Of a runtime that takes A and B of linear layers, with their scales, and nothing else."""

RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("peft", "0.21.2", "run", "the folder", True, _PEFT),
        Runtime(
            "vllm", "0.33.0", "vllm/lora/peft_helper.py, config/lora.py, lora_model.py, read",
            "PEFT's folder", True,
            _FACTORS | {
                t.RSLORA: Fact(OK, BAKED, "honoured since it reads PEFT's config; older forks differ"),
                t.MIXED_SCALES: Fact(OK, BAKED, "versions up to 0.2 ignore patterns, nothing said"),
                t.MIXED_RANKS: Fact(OK, PADDED, "versions up to 0.2 ignore patterns, nothing said"),
                t.LARGE: Fact(REFUSES, REFUSED, f"--max-lora-rank is at most {t.LARGEST_RANK}; {_MERGE}"),
                t.HEAD: Fact(OK, AS_IS, "one of score and classifier, since 0.33"),
                t.EMBEDDING: Fact(OK, AS_IS, "where the vocabulary is the base's"),
            },
            ("A rank above --max-lora-rank (16 by default) is refused.",),
        ),
        Runtime(
            "sglang", "0.5.23", "lora/lora.py:71, lora_manager.py:344, read; issue 40835", "PEFT's folder",
            True,
            _FACTORS | {
                t.RSLORA: Fact(SILENT, BAKED, "√r too weak"),
                t.MIXED_SCALES: Fact(SILENT, BAKED, "alpha_pattern is ignored"),
                t.MIXED_RANKS: Fact(SILENT, PADDED, "rank_pattern is ignored, and so its part in the scale"),
                t.EMBEDDING: _FINE,
            },
        ),
        Runtime(
            "llama.cpp", "0b03adaa, llama-cpp-python 0.3.36", "llama-adapter.h get_scale; run",
            "a GGUF of the adapter", False,
            _FACTORS | {
                t.RSLORA: Fact(SILENT, BAKED, "its converter: √r too weak"),
                t.MIXED_SCALES: Fact(SILENT, BAKED, "its converter ignores alpha_pattern"),
            },
            (
                "On a Q4_1 base a small adapter drowns: where it changes logits by 0.1 (rms), the change has "
                "a cosine of 0.27 with what it should be. Serve it on F16 or Q8_0.",
                "An adapter set on a kept prompt cache has 0.2 to 0.5 of its effect: begin a new context.",
            ),
        ),
        Runtime(
            "ollama", "01cf7445", "convert/convert.go, convert_llama_adapter.go, read",
            "a GGUF of the adapter; PEFT's folder for Llama and Gemma 2 only", True,
            _FACTORS | {
                t.RSLORA: Fact(SILENT, BAKED, "√r too weak"),
                t.MIXED_SCALES: Fact(SILENT, BAKED, "alpha_pattern is ignored"),
                t.FRACTIONAL: Fact(REFUSES, BAKED, "lora_alpha is read as a whole number (PR 17377)"),
            },
            ("FROM must be the base of the training; as with llama.cpp, not in 4 bits.",),
        ),
        Runtime(
            "mlx", "mlx-lm 0.32.2", "tuner/utils.py, run on a CPU", "a folder of its own", False,
            _FACTORS | {
                t.SCALED: Fact(REFUSES, BAKED, "its config has a scale and no alpha"),
                t.MIXED_RANKS: Fact(REFUSES, PADDED, "has one rank"),
                t.DORA: Fact(REFUSES, AS_IS, "its DoRA is PEFT's, where every weight has magnitudes"),
            },
            (
                "It reads rope_theta at the top of the base's config.json: transformers 5 saves it under "
                "rope_parameters, and such a base runs with 10000, nothing said. Copy it to the top.",
            ),
        ),
        Runtime(
            "openvino", "openvino-genai 2026.4.1.0", "run", "adapter_model.safetensors", True,
            _FACTORS | {
                t.SCALED: Fact(SILENT, BAKED, "adds B·A without alpha/r: the config is not read"),
                t.RSLORA: Fact(SILENT, BAKED, "adds B·A without any scale"),
                t.MIXED_SCALES: Fact(SILENT, BAKED, "adds B·A without any scale"),
                t.DORA: _DROPS,
                t.FACTOR_BIAS: _DROPS,
                t.HEAD: Fact(SILENT, APART, "the head is dropped: apply head.safetensors to embeddings"),
                t.WHOLE: _DROPS,
                t.TOKENS: _DROPS,
                t.BASE_BIAS: _DROPS,
            },
            (
                "Of two adapters at once, a changed weight of the first alone is ignored.",
                "A base that is a GGUF takes no adapter, nothing said.",
            ),
        ),
    )
}  # fmt: skip
"""By name."""

MERGED = "merged"
"""The runtime of any model: an export of the base with the adapter in its weights."""
MERGES = ("LORA", "ADALORA", "IA3", "VERA", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "FOURIERFT", "MISS", "C3A",
          "RANDLORA", "SHIRA", "LN_TUNING", "ROAD", "GRALORA", "OSF", "WAVEFT", "DELORA", "HIRA")  # fmt: skip
"""Kinds that PEFT merges into their base."""
VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
"""Kinds of virtual tokens, which no weight holds."""
