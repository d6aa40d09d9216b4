"""The frozen base model: :func:`load_base` reads it, checks its hash and switches its dropout off.

What is loaded is what is hashed, and what transformers says of it is handled or refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from headwater.adapters.head import last_layer, match_head, move_rows
from headwater.adapters.quantised import compute_as_in_training, quantisation
from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.adapters.reports import listening
from headwater.adapters.weights import hash_base, hashed_files, resolve_base
from headwater.config.model import (
    MODELS,
    CausalLMModel,
    EncoderModel,
    MaskedLMModel,
    Seq2SeqModel,
    SequenceClassificationModel,
)
from headwater.errors import ModelError
from headwater.merging.coverage import layer_of

PretrainedSettings = EncoderModel | SequenceClassificationModel | CausalLMModel | MaskedLMModel | Seq2SeqModel

_CLASSES = {
    "encoder": AutoModel,
    "sequence-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "masked-lm": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
_DEQUANTISED = ("fp8", "mxfp4")
"""Ways of saving weights that transformers undoes where it has no kernels for them."""
_POSITIONS = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_window", "attention_layers")
"""Settings of a configuration that have an entry for each layer."""
_BUFFERS = ("inv_freq", "position_ids", "masked_bias", "attn.bias", "attention.bias")
"""Ends of names that older files hold beside their weights: computed, not learned."""


@dataclass(frozen=True)
class Base:
    """A loaded base model, in evaluation mode. An adapter is built into it: use it for one model.

    Args:
        model: the transformers model, of ``settings.dtype`` (or quantised), without dropout.
        tokenizer: its tokenizer.
        sha256: :func:`headwater.adapters.weights.hash_base` of its files.
        settings: ``[model]`` of the federation.
        labels: names of the classes; None for a causal model.
        fresh: names of parameters that the files lack: the random start of a new head.
        device: where it computes.
        reordered: names of the head's parameters whose rows were put in the labels' order.
        notices: what the user should know of it, one sentence each.
    """

    model: PreTrainedModel
    tokenizer: TextTokenizer
    sha256: str
    settings: PretrainedSettings
    labels: tuple[str, ...] | None
    fresh: frozenset[str]
    device: torch.device
    reordered: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()

    @property
    def positions(self) -> int | None:
        """Tokens that a row may have where each position has learned values; None for rotary and the like."""
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
                first = 0 if module.padding_idx is None else module.padding_idx + 1  # as RoBERTa counts
                return module.num_embeddings - max(first, getattr(module, "offset", 0))
        return None


def load_base(
    settings: PretrainedSettings,
    folder: Path,
    *,
    labels: tuple[str, ...] | None,
    head_in_adapter: bool = False,
) -> Base:
    """Load the base model of a federation.

    Args:
        settings: ``[model]``.
        folder: where a relative ``settings.path`` starts.
        labels: names of the classes; None for a causal model.
        head_in_adapter: an adapter brings the head that belongs to ``labels``: what the files say of
            their own does not matter.

    Raises:
        ModelError: no such model, another hash than ``settings.sha256``, pickled weights, an
            architecture of another kind, weights missing from the files or left over, a trained head
            with other labels, a warning of transformers, or quantised layers that do not train.
        MissingDependency: quantisation without bitsandbytes.
    """
    who = f"base model {settings.path}"
    where = resolve_base(settings.path, settings.revision, folder)
    sha256 = hash_base(where)
    if settings.sha256 not in (None, sha256):
        raise ModelError(
            who,
            expected=f"sha256 {settings.sha256}",
            got=sha256,
            hint="These are not the files of this federation: fetch them again, or correct model.sha256.",
        )
    quantised = quantisation(settings)
    with hashed_files(where) as view, listening(who, settings.accept_warnings) as heard:
        tokenizer = TextTokenizer.load(view, settings.path)
        try:
            config = _configuration(view, settings, tokenizer)
            own_labels = dict(config.id2label or {})
            if labels is not None and settings.own_head:
                config.id2label = dict(enumerate(labels))
                config.label2id = {label: i for i, label in enumerate(labels)}
            model, info = _CLASSES[settings.kind].from_pretrained(
                view,
                config=config,
                dtype=getattr(torch, settings.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=settings.own_head,
                output_loading_info=True,
                **quantised,
            )
        except ModelError:
            raise
        except Exception as error:  # transformers raises bare exceptions of many types
            raise ModelError(
                who,
                expected=f"a model that {_CLASSES[settings.kind].__name__} loads",
                got=heard.mismatches() or f"{type(error).__name__}: {_first_lines(error)}",
                hint=_other_kind(where, settings),
            ) from error
        fresh = frozenset(info["missing_keys"]) | {str(key[0]) for key in info["mismatched_keys"]}
        if isinstance(settings, MaskedLMModel | Seq2SeqModel):
            _require_complete(who, settings, model, fresh)  # before what transformers warns of because of it
    model.config._name_or_path = model.name_or_path = settings.path
    _require_complete(who, settings, model, fresh)
    notices = [*heard.notices, *_unread_files(who, where)]
    notices += _left_over(who, settings, frozenset(info["unexpected_keys"]))
    head = _Head(frozenset())
    if labels is not None and isinstance(settings, SequenceClassificationModel) and not head_in_adapter:
        others = {str(key[0]): int(key[1][0]) for key in info["mismatched_keys"] if len(key) > 1 and key[1]}
        head = _head(who, settings, model, frozenset(info["missing_keys"]), others, own_labels, labels)
    _set_ends(model, where)
    tokenizer.fit(model.get_input_embeddings().weight.shape[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not quantised:
        model = model.to(device)
    elif device.type == "cpu":
        compute_as_in_training(model, settings)
    model.eval()
    notices += head.notices
    return Base(
        model, tokenizer, sha256, settings, labels, fresh | head.fresh, device, head.reordered, tuple(notices)
    )


def _configuration(where: Path, settings: PretrainedSettings, tokenizer: TextTokenizer) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    _refuse_parts(config, settings)
    _refuse_quantised(config, settings)
    if settings.layers is not None:
        if settings.layers > config.num_hidden_layers:
            raise ModelError(
                "model.layers", expected=f"at most {config.num_hidden_layers}", got=str(settings.layers)
            )
        if config.is_encoder_decoder:
            raise ModelError(
                "model.layers",
                expected="a base with one stack of layers",
                got=f"{config.model_type}, an encoder and a decoder",
                hint="Leave model.layers out.",
            )
        config.num_hidden_layers = settings.layers
        for name in PER_LAYER:
            if isinstance(listed := vars(config).get(name), list):
                setattr(config, name, listed[: settings.layers])
    for name, value in config.to_dict().items():
        # A frozen base regularises nothing by dropping units; off, the same bits come out in training
        # and evaluation mode, and checkpointing (which needs training mode) changes no result.
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    config.use_cache = False
    if config.pad_token_id is None and settings.own_head:
        config.pad_token_id = tokenizer.pad  # decoders want one, though adapters.network reads by the mask
    return config


def _refuse_parts(config: PretrainedConfig, settings: PretrainedSettings) -> None:
    """Refuse a model of texts and pictures or sounds, whose text model is one part among others.

    Raises:
        ModelError: names the parts.
    """
    if config.is_encoder_decoder or config.get_text_config() is config:
        return
    parts = ", ".join(sorted(name.removesuffix("_config") for name in type(config).sub_configs))
    raise ModelError(
        f"base model {settings.path}",
        expected="a model of text alone",
        got=f"{config.model_type}, which has the parts {parts}",
        hint="Use a model of the same family for text alone, or save its language model by itself, with its "
        "text_config as config.json.",
    )


def _refuse_quantised(config: PretrainedConfig, settings: PretrainedSettings) -> None:
    """Refuse weights that were quantised before they were saved and stay so.

    Raises:
        ModelError: names the method.
    """
    saved = getattr(config, "quantization_config", None) or {}
    method = saved.get("quant_method") if isinstance(saved, dict) else getattr(saved, "quant_method", None)
    method = getattr(method, "value", method)
    if saved and method not in _DEQUANTISED:
        raise ModelError(
            f"base model {settings.path}",
            expected="weights as they were before they were quantised",
            got=f"config.json's quantization_config of {method or 'no known method'}",
            hint='Use the base from which these were made; model.quantization = "8bit" or "4bit" then '
            "quantises it while it is read.",
        )


def _require_complete(
    who: str, settings: PretrainedSettings, model: PreTrainedModel, fresh: frozenset[str]
) -> None:
    """Refuse random weights where none would be trained: every process would draw others."""
    if settings.own_head:
        body = [n for n in fresh if n.startswith(f"{model.base_model_prefix}.") and "pooler" not in n]
    elif settings.pooled:
        body = [name for name in fresh if "pooler" not in name]  # mean pooling passes the pooler by
    else:
        body = list(fresh)
    if body:
        raise ModelError(
            who,
            expected="all weights of its architecture",
            got=f"{len(body)} missing or of another shape, such as {min(body)}",
            hint="The files are incomplete or of another architecture.",
        )


def _left_over(who: str, settings: PretrainedSettings, unexpected: frozenset[str]) -> list[str]:
    """What the files hold and this kind of model does not use: a head is named, a layer is refused."""
    names = [name for name in unexpected if not name.endswith(_BUFFERS)]
    body = [name for name in names if (layer := layer_of(name)) is not None and not _cut(settings, layer)]
    if body:
        raise ModelError(
            who,
            expected=f"files whose layers all belong to a model of kind {settings.kind!r}",
            got=f"{len(body)} tensors that it has no place for, such as {min(body)}",
            hint="config.json and the weights do not belong together, or this architecture has a part (an "
            "encoder, an adapter) that this model.kind leaves out.",
        )
    heads = sorted({name.rpartition(".")[0] or name for name in names if layer_of(name) is None})
    if not heads:
        return []
    shown = ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")
    return [f"{who}: model.kind {settings.kind!r} does not use what the files hold as {shown}"]


def _cut(settings: PretrainedSettings, layer: int) -> bool:
    return settings.layers is not None and layer >= settings.layers


@dataclass(frozen=True, slots=True)
class _Head:
    """A classifier's head: names of fresh and of moved parameters, and what the user should know."""

    fresh: frozenset[str]
    reordered: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()


def _head(
    who: str,
    settings: SequenceClassificationModel,
    model: PreTrainedModel,
    missing: frozenset[str],
    others: dict[str, int],
    own: dict[int, str],
    labels: tuple[str, ...],
) -> _Head:
    """Let a trained head serve ``labels``.

    Args:
        who: the base, for messages.
        settings: ``[model]``.
        model: the classifier, with as many outputs as there are labels.
        missing: names of parameters that the files lack.
        others: names of those that have another number of rows in the files, and that number.
        own: the head's own names of its outputs.
        labels: the federation's.
    """
    last = last_layer(model, len(labels))
    rows = next((others[name] for name in sorted(last) if name in others), len(labels))
    if len(own) != rows:  # the configuration does not say: transformers takes two
        own = {row: f"LABEL_{row}" for row in range(rows)}
    if last & missing:
        if settings.head == "in-order":
            raise ModelError(
                "model.head 'in-order'",
                expected="a base whose files have a trained head",
                got="none",
                hint="Leave model.head out: the head then starts fresh.",
            )
        return _Head(last, notices=(f"{who}: its files have no trained head: the head starts fresh",))
    plan = match_head(who, own, labels, settings.head)
    notices = (plan.notice,) if plan.notice else ()
    if plan.fresh:
        return _Head(last, notices=notices)
    if plan.order is None:
        return _Head(frozenset())
    return _Head(frozenset(), move_rows(model, plan.order), notices)


def _set_ends(model: PreTrainedModel, where: Path) -> None:
    """Take the ids that end an answer from generation_config.json, and nothing else of it.

    It changes no training, so it is not hashed: its sampling and penalties would change answers unseen.
    """
    try:
        ends = json.loads((where / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return
    listed = ends if isinstance(ends, list) else [ends]
    if model.can_generate() and all(isinstance(end, int) and end >= 0 for end in listed):
        model.generation_config.eos_token_id = listed


def _unread_files(who: str, where: Path) -> list[str]:
    found = sorted(file.name for file in where.glob("adapter_*") if file.is_file())
    if not found:
        return []
    return [f"{who}: {', '.join(found)} in its folder are not read: the base is taken without that adapter"]


def _other_kind(where: Path, settings: PretrainedSettings) -> str:
    """Which ``model.kind`` would take this architecture."""
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except Exception:  # whatever is wrong with it was said already
        return ""
    kinds = [
        kind
        for kind, auto in _CLASSES.items()
        if kind != settings.kind
        and type(config) in auto._model_mapping
        and not (MODELS[kind].pooled and config.is_encoder_decoder)
    ]
    if type(config) in _CLASSES[settings.kind]._model_mapping or not kinds:
        return ""
    return f"For this architecture model.kind can be {' or '.join(map(repr, kinds))}."


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
