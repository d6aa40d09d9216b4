"""Attach a PEFT adapter to a base model: :func:`attach`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from peft.utils import ModulesToSaveWrapper
from transformers.pytorch_utils import Conv1D

from headwater.adapters.base import Base
from headwater.adapters.reports import listening
from headwater.config.adapter import Adapter, Ia3Adapter, LoraAdapter, PrefixAdapter, PromptAdapter
from headwater.config.plugins import implementation
from headwater.config.traits import AdapterTraits
from headwater.errors import ModelError
from headwater.merging.coverage import layer_of

ALL_LINEAR = "all-linear"

_PEFT_HEADS = ("classifier", "score")

_TASKS = {
    "encoder": TaskType.FEATURE_EXTRACTION,
    "sequence-classification": TaskType.SEQ_CLS,
    "causal-lm": TaskType.CAUSAL_LM,
}


def attach(base: Base, adapter: Adapter) -> tuple[PeftModel, tuple[str, ...]]:
    """The PEFT model of ``adapter`` on ``base``, and what the user should know of it.

    Its initial values are PEFT's; they are replaced later.

    Raises:
        ModelError: target modules or layers that the model does not have, a combination that
            computes something else than it says, or a random layer that would not be trained.
    """
    config = _peft_config(base, adapter)
    linear, tied = linear_modules(base.model), _tied(base)
    # names of buffers are among those that files lack
    changed = [n for n, _ in base.model.named_parameters() if n in base.fresh | base.moved]
    who = f"adapter '{adapter.kind}' on {base.settings.path}"
    with listening(who, base.settings.accept_warnings) as heard:
        try:
            peft = get_peft_model(base.model, config)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
            raise ModelError(
                who,
                expected="an adapter that PEFT can attach to this architecture",
                got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            ) from error
    if isinstance(adapter, LoraAdapter | Ia3Adapter):
        _require_untied(who, peft, tied)
    if isinstance(adapter, LoraAdapter) and adapter.target_modules == (ALL_LINEAR,):
        _require_all_linear(who, peft, linear, adapter)
    if base.settings.own_head:
        _require_trained(base, adapter, peft, changed)
    return peft, tuple(heard.notices)


def _require_all_linear(who: str, peft: PeftModel, linear: Iterable[str], adapter: LoraAdapter) -> None:
    """Refuse ``all-linear`` where PEFT leaves linear layers or fused experts of the chosen layers out."""
    adapted = set(peft.base_model.targeted_module_names)
    parameters = {name.rpartition(".")[0] for name in peft.base_model.targeted_parameter_names}
    saved = [name for name, module in peft.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    below = [name.removeprefix("base_model.model.") for name in saved]
    outputs = {name for name, module in peft.get_base_model().named_modules() if module is _outputs(peft)}
    wanted = [
        name
        for name in [*linear, *_fused_experts(peft)]
        if (layer := layer_of(name)) is not None and (adapter.layers is None or layer in adapter.layers)
    ]
    left = [
        name
        for name in wanted
        if name not in adapted | parameters | outputs and not any(name.startswith(b) for b in below)
    ]
    if left:
        raise ModelError(
            who,
            expected=f'every linear layer to be adapted, as ["{ALL_LINEAR}"] says',
            got=f"{len(left)} that PEFT leaves out, such as {left[0]}",
            hint="Name the modules to adapt in adapter.target_modules"
            + (" (fused experts cannot be named)." if any("experts" in name for name in left) else "."),
        )


def _outputs(peft: PeftModel) -> torch.nn.Module | None:
    try:
        found = peft.get_base_model().get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, torch.nn.Module) else None


def _fused_experts(peft: PeftModel) -> list[str]:
    """Modules that hold the weights of many experts as one three-dimensional parameter."""
    return sorted(
        {
            name.rpartition(".")[0].replace(".base_layer", "")
            for name, parameter in peft.get_base_model().named_parameters()
            if parameter.dim() == 3 and "experts" in name.split(".") and "lora_" not in name
        }
    )


def _require_trained(base: Base, adapter: Adapter, peft: PeftModel, changed: Iterable[str]) -> None:
    """Refuse what differs from the files and nobody trains: values that are neither shared nor saved."""
    below = "base_model." if peft.active_peft_config.is_prompt_learning else "base_model.model."
    trained = {
        name.removeprefix(below).replace(".modules_to_save.default", "")
        for name, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    frozen = sorted({name.rpartition(".")[0] for name in changed if name not in trained})
    if frozen:
        raise ModelError(
            f"adapter '{adapter.kind}' on {base.settings.path}",
            expected="every layer that the files lack, or whose outputs were put in another order, trained",
            got=f"{', '.join(frozen)} frozen",
            hint="Use a LoRA adapter, or a base whose files have a head for these labels, in this order.",
        )


def linear_modules(model: torch.nn.Module) -> list[str]:
    """Full names of the modules that LoRA and IA3 can adapt, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]


def _peft_config(base: Base, adapter: Adapter) -> PeftConfig:
    """PEFT's settings of ``adapter``.

    Raises:
        ConfigError: neither :data:`ADAPTERS` nor an installed package has anything for this kind.
        ModelError: the base does not fit it.
    """
    made = ADAPTERS.get(type(adapter)) or implementation("adapter_kinds", adapter)
    common: dict[str, Any] = {"task_type": _TASKS[base.settings.kind]}
    if base.settings.own_head and not adapter.virtual_tokens:
        # what the files lack (a new head, a pooler) starts at random, so it must be trained and saved
        common["modules_to_save"] = _fresh_modules(base) or None
    config: PeftConfig = made(base, adapter, common)
    return config


def _prompt(base: Base, adapter: PromptAdapter, common: Mapping[str, Any]) -> PeftConfig:
    shape = base.model.config  # PEFT guesses these from names that not every architecture uses
    return PromptTuningConfig(
        num_virtual_tokens=adapter.tokens,
        token_dim=base.model.get_input_embeddings().embedding_dim,
        num_layers=shape.num_hidden_layers,
        num_attention_heads=getattr(shape, "num_attention_heads", 1),  # of no use to a prompt
        **common,
    )


def _prefix(base: Base, adapter: PrefixAdapter, common: Mapping[str, Any]) -> PeftConfig:
    return PrefixTuningConfig(num_virtual_tokens=adapter.tokens, **_unguessed(base), **common)


def _ia3(base: Base, adapter: Ia3Adapter, common: Mapping[str, Any]) -> PeftConfig:
    _check_targets(base, adapter.target_modules)
    return IA3Config(
        target_modules=list(adapter.target_modules),
        feedforward_modules=list(adapter.feedforward_modules),
        fan_in_fan_out=_transposed(base, adapter.target_modules),
        **common,
    )


def _lora(base: Base, adapter: LoraAdapter, common: Mapping[str, Any]) -> PeftConfig:
    _check_targets(base, adapter.target_modules)
    _check_layers(base, adapter)
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        target_modules=_targets(base, adapter),
        exclude_modules=_saved_whole(base, adapter, common.get("modules_to_save") or ()),
        layers_to_transform=None if adapter.layers is None else list(adapter.layers),
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        lora_dropout=adapter.dropout,
        fan_in_fan_out=_transposed(base, adapter.target_modules),
        bias="none",
        **common,
    )


ADAPTERS: Mapping[type[AdapterTraits], Callable[[Base, Any, Mapping[str, Any]], PeftConfig]] = {
    LoraAdapter: _lora,
    PromptAdapter: _prompt,
    PrefixAdapter: _prefix,
    Ia3Adapter: _ia3,
}
"""What makes PEFT's settings of an ``[adapter]``, by its class."""


_GUESSED = {
    "token_dim": ("hidden_size", ("hidden_size", "n_embd", "d_model")),
    "num_layers": ("num_hidden_layers", ("num_hidden_layers", "num_layers", "n_layer")),
    "num_attention_heads": (
        "num_attention_heads",
        ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
    ),
}
"""Of a prefix: transformers' common name of each size, and the names that PEFT knows it by."""


def _unguessed(base: Base) -> dict[str, int]:
    """Sizes that PEFT would not find in the model's configuration, under transformers' common names."""
    known = base.model.config.to_dict()
    return {
        size: getattr(base.model.config, common)
        for size, (common, names) in _GUESSED.items()
        if not any(name in known for name in names) and hasattr(base.model.config, common)
    }


def _targets(base: Base, adapter: LoraAdapter) -> str | list[str]:
    if adapter.target_modules != (ALL_LINEAR,):
        return list(adapter.target_modules)
    if adapter.layers is None:
        return ALL_LINEAR
    # PEFT takes that word for all layers only
    paths = [name.split(".") for name in linear_modules(base.model)]
    return sorted({path[-1] for path in paths if any(part.isdigit() for part in path)})


def _saved_whole(base: Base, adapter: LoraAdapter, saved: Sequence[str]) -> list[str] | None:
    """Linear layers that PEFT saves whole, by the ends of their names, and ``all-linear`` would adapt."""
    if not base.settings.own_head or adapter.target_modules != (ALL_LINEAR,):
        return None
    ends = (*_PEFT_HEADS, *saved)
    return [n for n in linear_modules(base.model) if n.endswith(ends) and n not in _PEFT_HEADS] or None


def _fresh_modules(base: Base) -> list[str]:
    """Modules to train and save whole, without those in PEFT's own ``classifier`` or ``score``.

    They are what the files lack, and a head whose outputs were put in another order. A module that is saved
    inside another that is saved would be saved under two names.
    """
    modules = {name.rpartition(".")[0] for name in base.fresh | base.moved}
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


def _require_untied(who: str, peft: PeftModel, tied: Mapping[str, str]) -> None:
    """Refuse to adapt a weight that is another module's too: merged, the adapter would change both."""
    shared = sorted(name for name in peft.base_model.targeted_module_names if name in tied)
    if shared:
        raise ModelError(
            who,
            expected="target_modules with a weight of their own",
            got=f"{shared[0]}, which has the same tensor as {tied[shared[0]]}",
            hint="Merging an adapter of one would change the other. Leave it out, or save the base untied "
            "(tie_word_embeddings = false, with a copy of the weight).",
        )


def _tied(base: Base) -> dict[str, str]:
    """For each module whose matrix is another module's too, that other module."""
    owners: dict[int, list[str]] = {}
    for name, module in base.model.named_modules():
        for parameter in (p for p in module.parameters(recurse=False) if p.dim() > 1):
            owners.setdefault(parameter.data_ptr(), []).append(name)
    return {name: other for names in owners.values() for name in names for other in names if other != name}


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
