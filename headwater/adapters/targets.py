"""The modules of a base that adapters of layers change: by which names, and which must not be changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers.pytorch_utils import Conv1D

from headwater.adapters.base import Base
from headwater.errors import ModelError
from headwater.merging.coverage import layer_of

ALL_LINEAR = "all-linear"
PEFT_HEADS = ("classifier", "score")
"""Ends of the names of modules that PEFT saves whole by itself."""


@dataclass(frozen=True)
class Unadapted:
    """What is known of a base's layers only before PEFT wraps them.

    Args:
        linear: names of its linear modules, in the model's order.
        tied: for each module whose matrix is another module's too, that other module.
    """

    linear: tuple[str, ...]
    tied: Mapping[str, str]

    @staticmethod
    def of(base: Base) -> Unadapted:
        """Of ``base``, to which nothing is attached."""
        owners: dict[int, list[str]] = {}
        for name, module in base.model.named_modules():
            for parameter in (p for p in module.parameters(recurse=False) if p.dim() > 1):
                owners.setdefault(parameter.data_ptr(), []).append(name)
        tied = {n: other for names in owners.values() for n in names for other in names if other != n}
        return Unadapted(tuple(linear_modules(base.model)), tied)


def linear_modules(model: torch.nn.Module) -> list[str]:
    """Full names of the modules that adapters of layers can change, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]


def matching(base: Base, target: str) -> list[str]:
    """Full names of the linear modules that ``target`` names: one whole, the end of some, or all."""
    names = linear_modules(base.model)
    return names if target == ALL_LINEAR else [n for n in names if n == target or n.endswith(f".{target}")]


def require_targets(base: Base, targets: Sequence[str]) -> None:
    """Refuse ``adapter.target_modules`` of which one names nothing.

    Raises:
        ModelError: lists what there is.
    """
    for target in targets:
        if not matching(base, target):
            existing = sorted({name.rpartition(".")[2] for name in linear_modules(base.model)})
            raise ModelError(
                f"adapter.target_modules of {base.settings.path}",
                expected=f"names of linear modules: {', '.join(existing)}",
                got=repr(target),
                hint=f'Name those of this architecture, or ["{ALL_LINEAR}"].',
            )


def require_parameters(base: Base, names: Sequence[str]) -> None:
    """Refuse ``adapter.target_parameters`` of which one names nothing.

    Raises:
        ModelError: lists the fused ones that there are.
    """
    existing = {name: parameter.dim() for name, parameter in base.model.named_parameters()}
    for target in names:
        if not any(name == target or name.endswith(f".{target}") for name in existing):
            fused = sorted({".".join(name.split(".")[-2:]) for name, dim in existing.items() if dim == 3})
            raise ModelError(
                f"adapter.target_parameters of {base.settings.path}",
                expected=f"names of parameters, such as {', '.join(fused) or 'those of fused experts'}",
                got=repr(target),
            )


def require_patterns(who: str, peft: PeftModel, table: str, names: Iterable[str]) -> None:
    """Refuse a pattern that no adapted module has: PEFT would pass over it.

    Raises:
        ModelError: names it.
    """
    adapted = {*peft.base_model.targeted_module_names, *peft.base_model.targeted_parameter_names}
    for end in names:
        if not any(name == end or name.endswith(f".{end}") for name in adapted):
            raise ModelError(
                f"{who}, adapter.{table}",
                expected=f"the end of an adapted module's name, such as {min(adapted)}",
                got=repr(end),
            )


def require_layers(base: Base, layers: Sequence[int] | None) -> None:
    """Refuse ``adapter.layers`` that the base does not have, or that are none.

    Raises:
        ModelError: says which there are.
    """
    depth = base.model.config.num_hidden_layers
    outside = [layer for layer in layers or () if not 0 <= layer < depth]
    if outside or layers == ():
        raise ModelError(
            f"adapter.layers of {base.settings.path}",
            expected=f"layers between 0 and {depth - 1}",
            got=str(outside or "none"),
        )


def transposed(base: Base, targets: Sequence[str]) -> bool:
    """Whether one of the targets stores its weight as d_in × d_out (GPT-2's Conv1D)."""
    modules = dict(base.model.named_modules())
    return any(isinstance(modules[name], Conv1D) for t in targets for name in matching(base, t))


def in_layers(base: Base, layers: Sequence[int] | None) -> list[str]:
    """Full names of the linear modules in numbered layers: in these, or in all if None."""
    return [
        name
        for name in linear_modules(base.model)
        if (layer := layer_of(name)) is not None and (layers is None or layer in layers)
    ]


def saved_whole(base: Base, targets: Sequence[str], saved: Sequence[str]) -> list[str] | None:
    """Linear layers that PEFT saves whole, by the ends of their names, and ``all-linear`` would adapt."""
    if not base.settings.own_head or tuple(targets) != (ALL_LINEAR,):
        return None
    ends = (*PEFT_HEADS, *saved)
    return [n for n in linear_modules(base.model) if n.endswith(ends) and n not in PEFT_HEADS] or None


def require_untied(who: str, peft: PeftModel, before: Unadapted) -> None:
    """Refuse to adapt a weight that is another module's too: merged, the adapter would change both.

    Raises:
        ModelError: names both modules.
    """
    shared = sorted(name for name in peft.base_model.targeted_module_names if name in before.tied)
    if shared:
        raise ModelError(
            who,
            expected="target_modules with a weight of their own",
            got=f"{shared[0]}, which has the same tensor as {before.tied[shared[0]]}",
            hint="Merging an adapter of one would change the other. Leave it out, or save the base untied "
            "(tie_word_embeddings = false, with a copy of the weight).",
        )


def require_all_linear(
    who: str, peft: PeftModel, linear: Iterable[str], layers: Sequence[int] | None
) -> None:
    """Refuse ``all-linear`` where PEFT leaves linear layers or fused experts of the chosen layers out.

    Args:
        who: adapter and base, for messages.
        peft: the adapted model.
        linear: names of the base's linear modules.
        layers: the chosen layers; all if None.

    Raises:
        ModelError: says how many it left out, and one of them.
    """
    adapted = set(peft.base_model.targeted_module_names)
    parameters = {name.rpartition(".")[0] for name in peft.base_model.targeted_parameter_names}
    saved = [name for name, module in peft.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    below = [name.removeprefix("base_model.model.") for name in saved]
    outputs = {name for name, module in peft.get_base_model().named_modules() if module is _outputs(peft)}
    wanted = [
        name
        for name in [*linear, *_fused_experts(peft)]
        if (layer := layer_of(name)) is not None and (layers is None or layer in layers)
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
