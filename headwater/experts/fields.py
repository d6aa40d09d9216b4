"""What a compressed adapter says of itself: the fields of PEFT's config and of Headwater's notes that it has.

Whoever wrote a file, its fields are of these names and types, and small; a name that is not here is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from headwater.compression.byte_reader import Reader
from headwater.config.settings import Settings, in_words
from headwater.errors import ModelError

LONGEST = 1 << 20
"""Bytes of config or notes: patterns of rank by module take about a hundred each."""

Text = Annotated[str, Field(max_length=4096)]
Texts = Annotated[list[Text], Field(max_length=65536)]
Size = Annotated[int, Field(ge=0, le=1 << 31)]
Number = Annotated[float, Field(strict=False)] | Size
Numbers = dict[Text, Number]


class ConfigFields(Settings):
    """``adapter_config.json``, but for what only training uses."""

    peft_type: Literal["LORA", "ADALORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"]
    peft_version: Text | None = None
    task_type: Text | None = None
    base_model_name_or_path: Text | None = None
    revision: Text | None = None
    auto_mapping: dict[Text, Text | None] | None = None
    target_modules: Texts | Text | None = None
    target_parameters: Texts | None = None
    exclude_modules: Texts | Text | None = None
    feedforward_modules: Texts | Text | None = None
    modules_to_save: Texts | None = None
    layers_to_transform: Annotated[list[Size], Field(max_length=65536)] | Size | None = None
    layers_pattern: Texts | Text | None = None
    trainable_token_indices: list[Size] | dict[Text, list[Size]] | None = None
    r: Size | None = None
    init_r: Size | None = None
    target_r: Size | None = None
    total_step: Size | None = None
    tinit: Size | None = None
    tfinal: Size | None = None
    lora_alpha: Number | None = None
    rank_pattern: Numbers | dict[Text, list[bool]] | None = None
    alpha_pattern: Numbers | None = None
    bias: Text | None = None
    lora_bias: bool | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    ensure_weight_tying: bool | None = None
    num_virtual_tokens: Size | None = None
    num_transformer_submodules: Size | None = None
    num_attention_heads: Size | None = None
    num_layers: Size | None = None
    token_dim: Size | None = None
    prefix_projection: bool | None = None
    encoder_hidden_size: Size | None = None
    encoder_num_layers: Size | None = None
    encoder_reparameterization_type: Text | None = None


class NoteFields(Settings):
    """``headwater.json``, but for the card and hashes of what the values were before."""

    format: Text
    kind: Text
    base: dict[Text, JsonValue] | None = None
    rows: dict[Text, JsonValue] | None = None
    labels: Texts | None = None
    chat: bool = False
    system: Annotated[str, Field(max_length=65536)] | None = None
    ends: list[Size] | None = None
    pad_token_id: Size | None = None
    pooling: Text | None = None
    read_at_last_token: bool = False
    token_types: bool = False


TRAINING = frozenset(
    {
        "alora_invocation_tokens", "arrow_config", "corda_config", "deltaT", "encoder_dropout", "eva_config",
        "inference_mode", "init_ia3_weights", "init_lora_weights", "init_weights", "beta1", "beta2",
        "runtime_config",
        "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
        "orth_reg_weight", "prompt_tuning_init", "prompt_tuning_init_text", "qalora_group_size",
        "tokenizer_kwargs", "tokenizer_name_or_path",
    }
)  # fmt: skip
"""Fields of PEFT's config without a say once an adapter is trained, or that :class:`PeftFolder` refuses."""
DROPPED_NOTES = frozenset({"adapter", "adapter_sha256", "card", "spec", "values"})


def config_fields(who: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to keep of an ``adapter_config.json``.

    Raises:
        ModelError: a field is set that this version does not know, or one is not of its type.
    """
    return _checked(who, ConfigFields, {k: v for k, v in config.items() if k not in TRAINING})


def note_fields(who: str, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to keep of a ``headwater.json``; raises as :func:`config_fields`."""
    return _checked(who, NoteFields, {k: v for k, v in notes.items() if k not in DROPPED_NOTES})


def whole_notes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Notes with the fields that say nothing or no, which a file leaves out; none where there are none."""
    empty = {
        name: field.default for name, field in NoteFields.model_fields.items() if not field.is_required()
    }
    return empty | dict(fields) if fields else {}


def to_bytes(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON: keys sorted, no spaces, ASCII."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def from_bytes(reader: Reader, data: bytes, kind: type[Settings]) -> dict[str, Any]:
    """The fields in ``data``.

    Raises:
        DecodeError: other bytes than :func:`to_bytes` of fields of that kind.
    """
    try:
        fields = json.loads(data.decode("ascii"))
        if not isinstance(fields, dict) or to_bytes(fields) != data:
            raise ValueError("another form of JSON")
        kind.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        expected, got = in_words(problem)
        where = ".".join(map(str, problem["loc"]))[:80]
        raise reader.fail(f"{where}: {expected}", got or "another") from error
    except (ValueError, RecursionError) as error:  # of JSON, of its text, of brackets without end
        raise reader.fail("fields as canonical JSON", str(error)[:200]) from error
    return fields


def _checked(who: str, kind: type[Settings], fields: dict[str, Any]) -> dict[str, Any]:
    fields = {k: v for k, v in fields.items() if v is not None and v is not False and v != {}}
    try:
        kind.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        expected, got = in_words(problem)
        if problem["type"] == "extra_forbidden":
            expected, got = "only fields that this version knows", "this one, which may change what it does"
        raise ModelError(
            f"{who}, field {'.'.join(map(str, problem['loc']))}",
            expected=expected,
            got=got,
            hint="Remove the field, if the adapter works without it.",
        ) from error
    return fields
