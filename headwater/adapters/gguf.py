"""A GGUF file to a model folder that trains: :func:`convert_gguf`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from headwater.errors import MissingDependency, ModelError


def convert_gguf(source: Path, out: Path) -> None:
    """Dequantise ``source`` (a causal model) into ``out``: bf16 safetensors, config, tokenizer.

    Takes about a minute for 135M parameters. bf16 holds every value of a 4-bit GGUF to 8 bits.

    Raises:
        MissingDependency: the package gguf is not installed.
        ModelError: the file is not a GGUF that transformers can read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency(
            str(source),
            expected="the package gguf, to read it",
            got="nothing",
            hint="Install it with `pip install headwater[gguf]`.",
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.quantization_config import GgufConfig

    logging.disable_progress_bar()
    try:
        # without the config, transformers keeps a marker of quantisation and save_pretrained fails
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(str(source), expected="a GGUF file of a causal model", got=reason) from None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
