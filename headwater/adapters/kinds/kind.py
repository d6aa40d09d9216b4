"""AdapterKind: everything in which one kind of adapter differs from the others.

A kind is two classes. Its settings (``headwater.config.adapter``) are the keys of ``[adapter]`` and say, as
traits, what must be known before any model is loaded: :class:`headwater.config.traits.AdapterTraits`. Its
:class:`AdapterKind` says how PEFT makes it, what of it travels, and how that starts. Nothing else in
headwater asks which kind an adapter is. ``tests/laws/adapter_kind_laws.py`` holds the laws of every kind.

This module loads neither torch nor PEFT, so that a file with a kind is read quickly where only its settings
are needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from headwater.config.adapter import BaseAdapter

if TYPE_CHECKING:  # not to load torch, transformers and PEFT, which take seconds
    from numpy.random import Generator
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

    from headwater.adapters.base import Base
    from headwater.adapters.targets import Unadapted
    from headwater.state import Role, TensorSpec

AnyAdapter = TypeVar("AnyAdapter", bound=BaseAdapter)


class AdapterKind(ABC, Generic[AnyAdapter]):
    """One ``[adapter]``: what PEFT is told, which tensors are trained, and what they start as.

    Attributes:
        settings: the class of its ``[adapter]``; its ``kind`` is the kind's name.
        roles: what its tensors do in it: for a part of a name, the role. A trained tensor with none of these
            in its name is a ``head``.
        harmless: parts of warnings of PEFT that say nothing bad of it; any other warning is an error. Who
            uses the adapter is told, and the export says so too, in ``base.accept_warnings``.
        exports_itself: whether what PEFT saves is what is trained, and not something computed from it.
        adapter: its ``[adapter]``.
    """

    exports_itself: ClassVar[bool] = True
    settings: ClassVar[type[BaseAdapter]]
    roles: ClassVar[tuple[tuple[str, Role], ...]] = ()
    harmless: ClassVar[tuple[str, ...]] = ()

    def __init__(self, adapter: AnyAdapter) -> None:
        self.adapter = adapter

    @abstractmethod
    def peft_config(self, base: Base, common: Mapping[str, Any]) -> PeftConfig:
        """PEFT's settings of this adapter on ``base``.

        Args:
            base: the base model, to which nothing is attached.
            common: what every kind passes on: ``task_type``, and ``modules_to_save``, the modules that the
                base's files lack, unless the adapter is virtual tokens.

        Raises:
            ModelError: the base has no place for it.
        """

    @abstractmethod
    def start(self, spec: TensorSpec, peft: PeftModel, draw: Generator) -> Tensor:
        """The values that a tensor begins with, alike on every machine: float32 [spec.shape], on the CPU.

        Args:
            spec: one of this kind's tensors, never one of a head.
            peft: the adapted model, for what is taken from the base.
            draw: the tensor's own random numbers, by the federation's seed and its name.
        """

    def require_sound(self, who: str, peft: PeftModel, before: Unadapted) -> None:
        """Refuse what PEFT has attached but computes something else than ``[adapter]`` says.

        Args:
            who: adapter and base, for messages.
            peft: the adapted model.
            before: the base's layers, as they were before.

        Raises:
            ModelError: says what, and what to use instead.
        """
        return

    def prepare(self, peft: PeftModel) -> None:
        """Change what PEFT has attached, before anything is named or started.

        Args:
            peft: the adapted model, which :meth:`require_sound` has let through.
        """
        return

    def name_of(self, parameter: str) -> str:
        """The name by which a trained parameter travels that PEFT does not save as it is; empty if none.

        Args:
            parameter: its name in the PEFT model.
        """
        return ""

    def spec(self, peft: PeftModel, name: str, parameter: Tensor) -> TensorSpec:
        """What a trained tensor is.

        Args:
            peft: the adapted model.
            name: by which it travels.
            parameter: its values.
        """
        from headwater.state import TensorSpec

        role = next((role for mark, role in self.roles if mark in name), "head")
        return TensorSpec(name, tuple(parameter.shape), role)

    def stays_home(self, spec: TensorSpec, space: str) -> bool:
        """Whether a tensor that PEFT would train is fixed by the seed and does not travel.

        Args:
            spec: the tensor.
            space: ``strategy.space``.
        """
        return False

    def buffers(self, peft: PeftModel) -> dict[str, tuple[TensorSpec, Tensor]]:
        """What PEFT saves and nobody trains: :meth:`start` fixes it by the seed, the export has it."""
        return {}

    def saved(self, peft: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What PEFT saves of these values, under its names.

        Args:
            peft: the adapted model; it is not changed.
            tensors: what travels and what stays at home, under the names of the spec, as in the model.
        """
        return dict(tensors)

    def dropouts(self, peft: PeftModel) -> list[nn.Module]:
        """The modules of the adapter that drop units in training; the base's never do."""
        from torch.nn import Dropout

        if not getattr(self.adapter, "dropout", 0.0):
            return []
        return [m for m in peft.get_base_model().modules() if isinstance(m, Dropout)]

    def in_place(self, peft: PeftModel) -> Sequence[str]:
        """Parameters of the base that are trained where they stand, by their names in the PEFT model."""
        return ()

    def detach(self, peft: PeftModel) -> None:
        """Take the adapter off its base. Not asked of virtual tokens.

        Args:
            peft: the adapted model, which is then used up.
        """
        peft.unload()

    @property
    def is_linear_layers(self) -> bool:
        """Whether it trains weights of linear layers that see rows as they are, and each row once."""
        return False
