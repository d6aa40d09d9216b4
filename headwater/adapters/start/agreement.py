"""Whether PEFT's settings of two adapters say the same of their values: :func:`require_same_config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig

from headwater.config.start import read_as
from headwater.errors import ModelError

_OF_TRAINING = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
        "runtime_config", "lora_dropout", "vera_dropout", "encoder_dropout", "init_lora_weights",
        "init_ia3_weights", "init_weights", "d_initial", "loftq_config", "eva_config", "corda_config",
        "lora_ga_config", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
        "tokenizer_kwargs", "projection_prng_key", "save_projection", "megatron_config", "megatron_core",
    }
)  # fmt: skip
"""What says nothing of an adapter that is trained: how it started, how it was trained, and by whom."""
_TOLD_BY_TENSORS = frozenset(
    {
        "target_modules", "exclude_modules", "feedforward_modules", "target_parameters", "modules_to_save",
        "layers_to_transform", "layers_pattern", "fan_in_fan_out", "token_dim", "num_layers",
        "num_attention_heads", "num_transformer_submodules", "prefix_projection", "encoder_hidden_size",
        "encoder_num_layers", "encoder_reparameterization_type",
    }
)  # fmt: skip
"""What the tensors' names and shapes say. Of a computed prefix or prompt PEFT saves the result."""
_TAKEN_AS = {"P_TUNING": "PROMPT_TUNING"}


def require_same_config(who: str, ours: PeftConfig, theirs: Mapping[str, Any]) -> None:
    """Refuse an adapter whose values mean something else under our settings.

    Args:
        who: the start, for messages.
        ours: PEFT's settings of ``[adapter]``.
        theirs: the start's ``adapter_config.json``.

    Raises:
        ModelError: names the setting, and both values.
    """
    mine, passed = ours.to_dict(), _OF_TRAINING | _TOLD_BY_TENSORS
    said = {**_defaults(ours), **theirs}
    if _TAKEN_AS.get(str(said["peft_type"])) == _plain(mine["peft_type"]):
        said["peft_type"] = mine["peft_type"]
    for key in ("peft_type", *sorted((mine.keys() | said.keys()) - passed - {"peft_type"})):
        a, b = _plain(mine.get(key)), _plain(said.get(key))
        if a == b or (key not in mine and not b):
            continue
        known = key in mine
        raise ModelError(
            f"{who}: {key} in its adapter_config.json",
            expected=f"{a!r}, as [adapter] has it" if known else f"no {key}, which [adapter] cannot say",
            got=f"{b!r}"[:200],
            hint=_hint(str(_plain(theirs.get("peft_type"))), key) if known
            else "Train it on with the PEFT that made it, or merge it into its base.",
        )  # fmt: skip


def _hint(kind: str, key: str) -> str:
    """What to do about a setting that both have: not of every kind is it read from PEFT's file."""
    if name := read_as(kind, key):
        return f"Leave adapter.{name} out: what the file does not say is read from there."
    if key == "peft_type":
        return "Give adapter.kind and its settings as they were when it was trained."
    return f"Set what [adapter] has for PEFT's {key} to that: of this kind it is not read from there."


def _defaults(config: PeftConfig) -> dict[str, Any]:
    """What PEFT takes where a folder's file, of an older version, lacks a key."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        if entry.default is not dataclasses.MISSING:
            found[entry.name] = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            found[entry.name] = entry.default_factory()
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a JSON file holds
    """As JSON has it, and nothing for what says nothing: no, or an empty table."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value)) or None
    return getattr(value, "value", value) or None
