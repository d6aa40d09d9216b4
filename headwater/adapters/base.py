"""The frozen base model: :func:`load_base` reads it, checks its hash and switches its dropout off."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from headwater.adapters.tokenizer import TextTokenizer
from headwater.adapters.weights import hash_base, resolve_base
from headwater.config.federation import CausalLMModel, EncoderModel, SequenceClassificationModel
from headwater.errors import MissingDependency, ModelError

PretrainedSettings = EncoderModel | SequenceClassificationModel | CausalLMModel

_CLASSES = {
    "encoder": AutoModel,
    "sequence-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")


@dataclass(frozen=True)
class Base:
    """A loaded base model, in evaluation mode. An adapter is built into it: use it for one model.

    Args:
        model: the transformers model, fp32 (or quantised), without dropout.
        tokenizer: its tokenizer.
        sha256: :func:`headwater.adapters.weights.hash_base` of its files.
        settings: ``[model]`` of the federation.
        labels: names of the classes; None for a causal model.
        fresh: names of parameters that the files lack: the random start of a new head.
        device: where it computes.
    """

    model: PreTrainedModel
    tokenizer: TextTokenizer
    sha256: str
    settings: PretrainedSettings
    labels: tuple[str, ...] | None
    fresh: frozenset[str]
    device: torch.device

    @property
    def positions(self) -> int | None:
        """Tokens that a row may have where each position has learned values; None for rotary and the like."""
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
                first = 0 if module.padding_idx is None else module.padding_idx + 1  # as RoBERTa counts
                return module.num_embeddings - max(first, getattr(module, "offset", 0))
        return None


def load_base(settings: PretrainedSettings, folder: Path, *, labels: tuple[str, ...] | None) -> Base:
    """Load the base model of a federation.

    Args:
        settings: ``[model]``.
        folder: where a relative ``settings.path`` starts.
        labels: names of the classes; None for a causal model.

    Raises:
        ModelError: no such model, another hash than ``settings.sha256``, pickled weights, an
            architecture of another kind, weights missing from the files, or quantisation without a GPU.
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
    quantisation = _quantisation(settings)
    with quiet_transformers():
        tokenizer = TextTokenizer.load(where, settings.path)
        try:
            config = _configuration(where, settings, labels, tokenizer)
            model, info = _CLASSES[settings.kind].from_pretrained(
                where,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=settings.kind == "sequence-classification",
                output_loading_info=True,
                **quantisation,
            )
        except ModelError:
            raise
        except Exception as error:  # transformers raises bare exceptions of many types
            raise ModelError(
                who,
                expected=f"a model that {_CLASSES[settings.kind].__name__} loads",
                got=f"{type(error).__name__}: {error}",
            ) from error
    fresh = frozenset(info["missing_keys"]) | {str(key[0]) for key in info["mismatched_keys"]}
    _require_complete(who, settings, fresh)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not quantisation:
        model = model.to(device)
    model.eval()
    return Base(model, tokenizer, sha256, settings, labels, fresh, device)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load reports and progress bars from transformers, whatever its user has set."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _configuration(
    where: Path, settings: PretrainedSettings, labels: tuple[str, ...] | None, tokenizer: TextTokenizer
) -> PretrainedConfig:
    changes: dict[str, Any] = {}
    if labels is not None and settings.kind == "sequence-classification":
        changes["num_labels"] = len(labels)
        changes["id2label"] = dict(enumerate(labels))
        changes["label2id"] = {label: i for i, label in enumerate(labels)}
    config = AutoConfig.from_pretrained(where, trust_remote_code=False, **changes)
    if settings.layers is not None:
        if settings.layers > config.num_hidden_layers:
            raise ModelError(
                "model.layers", expected=f"at most {config.num_hidden_layers}", got=str(settings.layers)
            )
        config.num_hidden_layers = settings.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: settings.layers]
    for name, value in config.to_dict().items():
        # A frozen base regularises nothing by dropping units; off, the same bits come out in training
        # and evaluation mode, and checkpointing (which needs training mode) changes no result.
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    config.use_cache = False
    if config.pad_token_id is None and settings.kind == "sequence-classification":
        config.pad_token_id = tokenizer.pad  # decoders find their last token by it
    return config


def _quantisation(settings: PretrainedSettings) -> dict[str, Any]:
    if settings.quantization == "none":
        return {}
    who = f"model.quantization '{settings.quantization}'"
    if not torch.cuda.is_available():
        raise ModelError(
            who, expected="a CUDA GPU", got="none", hint='Use quantization = "none" on this machine.'
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency(
            who, expected="bitsandbytes", got="not installed", hint="pip install 'headwater[gpu]'"
        )
    from transformers import BitsAndBytesConfig

    if settings.quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    }


def _require_complete(who: str, settings: PretrainedSettings, fresh: frozenset[str]) -> None:
    """Refuse random weights where none would be trained: every process would draw others."""
    if settings.kind == "sequence-classification":
        body = [name for name in fresh if any(part.isdigit() for part in name.split("."))]
    elif settings.kind == "encoder":
        body = [name for name in fresh if "pooler" not in name]  # mean pooling passes the pooler by
    else:
        body = list(fresh)
    if body:
        raise ModelError(
            who,
            expected="all weights of its architecture",
            got=f"{len(body)} missing, such as {min(body)}",
            hint="The files are incomplete or of another architecture.",
        )
