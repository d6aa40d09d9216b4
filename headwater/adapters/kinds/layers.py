"""LayerKind: a kind that PEFT attaches to linear layers, told by a table of roles and of how they begin."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import peft as library
from numpy.random import Generator
from peft import PeftConfig, PeftModel
from torch import Tensor

from headwater.adapters import targets
from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.starts import Start
from headwater.config.adapter_base import LayerAdapter
from headwater.state import Role, TensorSpec

AnyLayers = TypeVar("AnyLayers", bound=LayerAdapter)


class LayerKind(AdapterKind[AnyLayers]):
    """An adapter of linear layers. PEFT refuses layers that it cannot adapt, such as GPT-2's transposed ones.

    Attributes:
        makes: the name of PEFT's configuration.
        tensors: for a part of a name, the role of the tensors that have it, and how they begin.
    """

    makes: ClassVar[str]
    tensors: ClassVar[tuple[tuple[str, Role, Start], ...]]

    def __init_subclass__(cls, **given: object) -> None:
        super().__init_subclass__(**given)
        cls.roles = tuple((mark, role) for mark, role, _ in cls.tensors)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """PEFT's settings, without those that every kind of layers has."""

    def peft_config(self, base: Base, common: Mapping[str, Any]) -> PeftConfig:  # noqa: D102 - inherited
        adapter = self.adapter
        targets.require_targets(base, adapter.target_modules)
        targets.require_layers(base, adapter.layers)
        make = getattr(library, self.makes)
        settings: dict[str, Any] = {"target_modules": chosen(base, adapter, common), **self.options()}
        if any(field.name == "fan_in_fan_out" for field in dataclasses.fields(make)):
            settings["fan_in_fan_out"] = targets.transposed(base, adapter.target_modules)
        found: PeftConfig = make(**settings, **common)
        return found

    def require_sound(self, who: str, peft: PeftModel, before: targets.Unadapted) -> None:  # noqa: D102 - inherited
        targets.require_untied(who, peft, before)
        if self.adapter.target_modules == (targets.ALL_LINEAR,):
            targets.require_all_linear(who, peft, before.linear, self.adapter.layers)

    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:  # noqa: D102 - inherited
        begin = next(begin for _, role, begin in self.tensors if role == spec.role)
        return begin(spec, draw)


def chosen(base: Base, adapter: LayerAdapter, common: Mapping[str, Any]) -> list[str]:
    """The layers to adapt: ends of names as the file has them, or full names where it leaves layers out.

    PEFT's own word for all layers takes those of a head too, which it saves whole.
    """
    if adapter.layers is None and adapter.target_modules != (targets.ALL_LINEAR,):
        return list(adapter.target_modules)
    named = {name for target in adapter.target_modules for name in targets.matching(base, target)}
    saved: Sequence[str] = common.get("modules_to_save") or ()
    return [
        name
        for name in targets.in_layers(base, adapter.layers)
        if name in named and not any(part.endswith((*targets.PEFT_HEADS, *saved)) for part in name.split("."))
    ]
