"""Attach a PEFT adapter to a base model: :func:`attach`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from transformers.pytorch_utils import Conv1D

from headwater.adapters.base import Base
from headwater.config.federation import Adapter, Ia3Adapter, LoraAdapter, PrefixAdapter, PromptAdapter
from headwater.errors import ModelError

ALL_LINEAR = "all-linear"

_PEFT_HEADS = ("classifier", "score")

_TASKS = {
    "encoder": TaskType.FEATURE_EXTRACTION,
    "sequence-classification": TaskType.SEQ_CLS,
    "causal-lm": TaskType.CAUSAL_LM,
}


def attach(base: Base, adapter: Adapter) -> PeftModel:
    """The PEFT model of ``adapter`` on ``base``. Its initial values are PEFT's; they are replaced later.

    Raises:
        ModelError: target modules or layers that the model does not have, a combination that
            computes something else than it says, or a random layer that would not be trained.
    """
    config = _peft_config(base, adapter)
    fresh = [name for name, _ in base.model.named_parameters() if name in base.fresh]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about Conv1D and empty matches, both checked here
        try:
            peft = get_peft_model(base.model, config)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ModelError(
                f"adapter '{adapter.kind}' on {base.settings.path}",
                expected="an adapter that PEFT can attach to this architecture",
                got=f"{type(error).__name__}: {error}",
            ) from error
    if base.settings.kind == "sequence-classification":
        _require_trained(base, adapter, peft, fresh)
    return peft


def _require_trained(base: Base, adapter: Adapter, peft: PeftModel, fresh: list[str]) -> None:
    """Refuse what the files lack and nobody trains: random values that are neither shared nor saved."""
    below = "base_model." if peft.active_peft_config.is_prompt_learning else "base_model.model."
    trained = {
        name.removeprefix(below).replace(".modules_to_save.default", "")
        for name, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    frozen = sorted({name.rpartition(".")[0] for name in fresh if name not in trained})
    if frozen:
        raise ModelError(
            f"adapter '{adapter.kind}' on {base.settings.path}",
            expected="every layer that the files lack to be trained",
            got=f"{', '.join(frozen)} frozen at random values",
            hint='Use a LoRA or IA3 adapter, model.kind = "encoder", or a base that has them.',
        )


def linear_modules(model: torch.nn.Module) -> list[str]:
    """Full names of the modules that LoRA and IA3 can adapt, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]


def _peft_config(base: Base, adapter: Adapter) -> PeftConfig:
    common: dict[str, Any] = {"task_type": _TASKS[base.settings.kind]}
    if isinstance(adapter, PromptAdapter):
        if base.settings.kind == "sequence-classification" and hasattr(base.model, "score"):
            # without input ids, transformers reads such a head at the last position: often padding
            raise ModelError(
                "adapter.kind 'prompt'",
                expected="a model whose head does not look for the last token",
                got=type(base.model).__name__,
                hint='Use model.kind = "encoder", or a LoRA adapter.',
            )
        shape = base.model.config  # PEFT guesses these from names that not every architecture uses
        return PromptTuningConfig(
            num_virtual_tokens=adapter.tokens,
            token_dim=base.model.get_input_embeddings().embedding_dim,
            num_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            **common,
        )
    if isinstance(adapter, PrefixAdapter):
        return PrefixTuningConfig(num_virtual_tokens=adapter.tokens, **common)
    if base.settings.kind == "sequence-classification":
        # what the files lack (a new head, a pooler) starts at random, so it must be trained and saved
        common["modules_to_save"] = _fresh_modules(base) or None
    if isinstance(adapter, Ia3Adapter):
        _check_targets(base, adapter.target_modules)
        return IA3Config(
            target_modules=list(adapter.target_modules),
            feedforward_modules=list(adapter.feedforward_modules),
            fan_in_fan_out=_transposed(base, adapter.target_modules),
            **common,
        )
    _check_targets(base, adapter.target_modules)
    _check_layers(base, adapter)
    targets = adapter.target_modules
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        target_modules=_targets(base, adapter),
        layers_to_transform=None if adapter.layers is None else list(adapter.layers),
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        lora_dropout=adapter.dropout,
        fan_in_fan_out=_transposed(base, targets),
        bias="none",
        **common,
    )


def _targets(base: Base, adapter: LoraAdapter) -> str | list[str]:
    if adapter.target_modules != (ALL_LINEAR,):
        return list(adapter.target_modules)
    if adapter.layers is None:
        return ALL_LINEAR
    # PEFT takes that word for all layers only
    paths = [name.split(".") for name in linear_modules(base.model)]
    return sorted({path[-1] for path in paths if any(part.isdigit() for part in path)})


def _fresh_modules(base: Base) -> list[str]:
    """Modules that the files lack, without those in PEFT's own ``classifier`` or ``score``.

    A module that is saved inside another that is saved would be saved under two names.
    """
    modules = {name.rpartition(".")[0] for name in base.fresh}
    return sorted(m for m in modules if not any(p.endswith(_PEFT_HEADS) for p in m.split(".")))


def _matches(base: Base, target: str) -> list[str]:
    names = linear_modules(base.model)
    return names if target == ALL_LINEAR else [n for n in names if n == target or n.endswith(f".{target}")]


def _check_targets(base: Base, targets: tuple[str, ...]) -> None:
    for target in targets:
        if not _matches(base, target):
            existing = sorted({name.rpartition(".")[2] for name in linear_modules(base.model)})
            raise ModelError(
                f"adapter.target_modules of {base.settings.path}",
                expected=f"names of linear modules: {', '.join(existing)}",
                got=repr(target),
                hint=f'Name those of this architecture, or ["{ALL_LINEAR}"].',
            )


def _check_layers(base: Base, adapter: LoraAdapter) -> None:
    depth = base.model.config.num_hidden_layers
    outside = [layer for layer in adapter.layers or () if not 0 <= layer < depth]
    if outside or adapter.layers == ():
        raise ModelError(
            f"adapter.layers of {base.settings.path}",
            expected=f"layers between 0 and {depth - 1}",
            got=str(outside or "none"),
        )


def _transposed(base: Base, targets: tuple[str, ...]) -> bool:
    modules = dict(base.model.named_modules())
    return any(isinstance(modules[name], Conv1D) for t in targets for name in _matches(base, t))
