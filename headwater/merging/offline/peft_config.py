"""``adapter_config.json`` as anybody's file: what it says of scales, and what no merge of changes can take.

With s = α/r, or α/√r for rsLoRA (arXiv 2312.03732), LoRA adds s·B·A; ``rank_pattern`` and ``alpha_pattern``
give modules their own r and α. AdaLoRA divides by the rank that it started with, whatever is left of it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.errors import DecodeError, ModelError, StorageError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LORA, PLAIN = ("LORA", "ADALORA"), ("IA3", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
_UNSUPPORTED: Mapping[str, str] = {
    "layer_replication": "its layers are not those of the base",
    "alora_invocation_tokens": "it acts only after its invocation tokens",
    "arrow_config": "it routes between adapters",
    "use_qalora": "its inputs are pooled before A",
    "use_bdlora": "its factors are block diagonal",
    "velora_config": "PEFT trains it in a compressed form",
    "kasa_config": "its scale is another than alpha and r",
    "monteclora_config": "its scale is another than alpha and r",
}
"""Options of LoRA under which the change of a weight is not s·B·A, and why."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of LoRA for which PEFT takes something out of the base when it loads the adapter."""
_LARGEST_NUMBER = 1e38
"""Of alphas and ranks: squares of what float32 holds, times it, are still numbers."""
_LARGEST = 16 << 20
"""Bytes of a JSON file; a pattern for each of 100,000 modules takes as many."""
_LONGEST_PATTERN, _MOST_REPEATS, _SLOW = 256, 3, re.compile(r"\)\s*[*+{]")
"""Of a pattern for modules' names; a repeated group can take for ever, and the file may be anybody's."""
LONGEST_NAME = 1024
"""Characters of a tensor's name: patterns take time that grows with its square and more."""
ATTENTION_OUT = ".base_layer.out_proj"
"""The end of a module's name in ``nn.MultiheadAttention``: PEFT gives it r and α of the attention itself."""


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON object from a file of an adapter's folder.

    Raises:
        StorageError: no such file, or none that can be read.
        DecodeError: something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise DecodeError(f"{path}", expected="a file", got="something else")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise DecodeError(f"{path}", expected=f"at most {_LARGEST} bytes of JSON", got="more")
        content = json.loads(data)
    except OSError as error:
        raise StorageError(
            f"{folder}",
            expected=f"a folder with {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes it",
            got=f"{path.name}: {error.strerror}",
            hint="Give the folder of the adapter, not its file.",
        ) from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of brackets without end
        raise DecodeError(f"{path}", expected="JSON", got=str(error)) from error
    if not isinstance(content, dict):
        raise DecodeError(f"{path}", expected="a JSON object", got=type(content).__name__)
    return content


def require_additive(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse LoRA of which s·B·A is not the change of a weight.

    Raises:
        ModelError: it is such a one.
    """
    for option, reason in _UNSUPPORTED.items():
        if config.get(option):
            raise ModelError(
                f"{path}, {CONFIG}", expected=f"no {option}", got=f"{config[option]!r:.80}", hint=f"{reason}."
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise ModelError(
            f"{path}, {CONFIG}",
            expected="an adapter whose base is as it was",
            got=f"init_lora_weights {start!r:.80}, which changes the base when it is loaded",
            hint="Convert it first: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )


def rank_of(path: Path, config: Mapping[str, Any], module: str) -> int:
    """The r of a module, as its config says; of AdaLoRA the rank that it started with.

    Raises:
        ModelError: it says nothing that is a rank.
    """
    if config["peft_type"] == "ADALORA":
        return _whole(path, "init_r", config.get("init_r", 12))
    return _whole(path, *_of_module(path, config, "rank_pattern", "r", module))


def scaling_of(path: Path, config: Mapping[str, Any], module: str) -> float:
    """The s of a module.

    Raises:
        ModelError: its config says nothing that is a scale.
    """
    rank = rank_of(path, config, module)
    if config["peft_type"] == "ADALORA":  # as PEFT does it
        alpha = _number(path, "lora_alpha", config.get("lora_alpha", 8))
        return (alpha if alpha > 0 else rank) / (rank + 1e-5)
    alpha = _number(path, *_of_module(path, config, "alpha_pattern", "lora_alpha", module))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(
    path: Path, config: Mapping[str, Any], pattern: str, default: str, module: str
) -> tuple[str, object]:
    """A module's own r or α and where it stands, as PEFT finds it: the first key that ends its name."""
    own = config.get(pattern) or {}
    if not isinstance(own, dict):
        raise _odd(path, pattern, "a table by module", own)
    for key, value in own.items():
        if _matches(path, pattern, key, module.removesuffix(ATTENTION_OUT)):
            return f"{pattern} of {module}", value
    return default, 8 if (value := config.get(default)) is None else value


def _matches(path: Path, pattern: str, key: str, module: str) -> bool:
    if len(key) > _LONGEST_PATTERN or _SLOW.search(key) or len(re.findall(r"[*+{]", key)) > _MOST_REPEATS:
        raise _odd(path, pattern, "names of modules, or short patterns", key)
    try:
        return _compiled(key).match(module) is not None
    except re.error as error:
        raise _odd(path, pattern, "names of modules, or patterns", key) from error


@functools.lru_cache(maxsize=65536)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _whole(path: Path, key: str, value: object) -> int:
    number = _number(path, key, value)
    if number < 1 or number != int(number):
        raise _odd(path, key, "a whole number above 0", value)
    return int(number)


def _number(path: Path, key: str, value: object) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER:
            return float(value)
    except OverflowError:  # an integer beyond all floats
        pass
    raise _odd(path, key, f"a finite number, at most {_LARGEST_NUMBER:g}", value)


def _odd(path: Path, key: str, expected: str, got: object) -> ModelError:
    return ModelError(f"{path}, {CONFIG}, {key}", expected=expected, got=f"{got!r:.80}")
