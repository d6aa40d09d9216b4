"""StackedLayer: a layer that computes with each client's own tensors, in one pass over all their rows.

A trained tensor belongs to a kind of layer, whatever kind of adapter put it there. So a kind of adapter from
another package can be stacked where PEFT makes its layers of these, and is refused where it does not:
:func:`headwater.adapters.stacked.stack.unstackable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""PEFT's name of the one adapter."""


@dataclass(frozen=True, slots=True)
class Dropping:
    """How each client's inputs of its adapter are dropped: as alone, from a stream of its own.

    Args:
        generators: one for each client.
        shapes: rows and tokens of each client's own batch, which it would draw for.
    """

    generators: Sequence[torch.Generator]
    shapes: Sequence[tuple[int, int]]

    def kept(self, x: Tensor, share: float) -> Tensor:
        """0 where ``x`` is dropped, else 1 over the share that is kept, as torch has it.

        Args:
            x: [K·b, t, d] or [K·b·t, d], of tokens; or [K·b, d], of rows.
            share: that is kept.

        Raises:
            ValueError: an input of another shape: what a client would draw for it alone is not known.
        """
        clients, rows = len(self.generators), max(b for b, _ in self.shapes)
        most, size = max(t for _, t in self.shapes), x.shape[-1]
        if x.shape[:-1] in {(clients * rows, most), (clients * rows * most,)}:
            width = most
        elif x.shape[:-1] == (clients * rows,):
            width = 1
        else:
            raise ValueError(f"dropout of an input of shape {tuple(x.shape)}, neither of rows nor of tokens")
        found = torch.zeros(clients, rows, width, size, dtype=x.dtype)
        for own, generator, (batch, tokens) in zip(found, self.generators, self.shapes, strict=True):
            drawn = torch.empty(batch, min(tokens, width), size, dtype=x.dtype)
            own[:batch, :tokens] = drawn.bernoulli_(share, generator=generator).div_(share)
        return found.view(x.shape).to(x.device)


@dataclass(frozen=True, slots=True)
class Together:
    """Whose rows a pass has, one client's after the other's, equally many of each.

    Args:
        clients: K.
        dropping: of the adapter's inputs, while the model trains; None for nothing.
    """

    clients: int
    dropping: Dropping | None = None

    def rows(self, x: Tensor) -> Tensor:
        """``x`` [K·…, d], apart by client: [K, …, d]."""
        return x.reshape(self.clients, -1, x.shape[-1])

    def dropped(self, x: Tensor, dropout: nn.Module) -> Tensor:
        """``x`` as ``dropout`` leaves it."""
        share = kept_share(dropout)
        if self.dropping is None or share == 1:
            return x
        return x * self.dropping.kept(x, share)


class StackedLayer(ABC):
    """A layer of which each client has its own tensors.

    Args:
        module: the layer, which computes with one client's.

    Attributes:
        method: of the module that is another while it is stacked.
    """

    method: ClassVar[str] = "forward"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    @abstractmethod
    def takes(cls, module: nn.Module) -> bool:
        """Whether it is such a layer."""

    @abstractmethod
    def parts(self) -> Sequence[nn.Module]:
        """Modules in it that compute nothing by themselves while it is stacked."""

    @abstractmethod
    def parameters(self) -> Sequence[Tensor]:
        """The tensors of which it takes stacks."""

    def dropouts(self) -> Sequence[nn.Module]:
        """Modules that drop its inputs, which it does for each client."""
        return ()

    @abstractmethod
    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:
        """What :attr:`method` does for all.

        Args:
            own: in the order of :meth:`parameters`, [K, *shape]; [*shape] of one that is the same for all.
            together: whose rows there are.
        """


def kept_share(dropout: nn.Module) -> float:
    """Of its inputs; 1 for a module that drops none."""
    return 1.0 - float(dropout.p) if isinstance(dropout, nn.Dropout) else 1.0
