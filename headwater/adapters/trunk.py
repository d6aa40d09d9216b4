"""Trunk: the layers below the first trained one, computed once for many passes over the same examples.

A method without backprop asks for the loss of one batch again and again, at weights that differ in the
upper layers only. What reaches the first of those is always the same: kept for the batch it saves the
trunk in every pass but the first; kept for all examples of a task, within a budget of memory, in every
step but the first that meets an example.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Trunk:
    """The part of a network below a layer.

    Args:
        layers: the network's stack, which this object borrows while it computes.
        first: the layers below this one are the trunk.
        budget_bytes: hidden states of so many bytes are kept from batch to batch; 0: of the last batch only.
    """

    def __init__(self, layers: nn.ModuleList, first: int, budget_bytes: int = 0) -> None:
        self._layers, self._first, self._left = layers, first, budget_bytes
        self._kept: dict[bytes, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def below(network: nn.Module, trained: Iterable[str], budget_bytes: int = 0) -> Trunk | None:
        """What lies below every trained tensor.

        Args:
            network: whose stack of layers is looked for.
            trained: names of the trained parameters, as in ``network.named_parameters()``.
            budget_bytes: as of :class:`Trunk`.

        Returns:
            None if the first layer is trained, or if there is no one stack that all of it is in.
        """
        found: set[tuple[str, int]] = set()
        for name in trained:
            parts = name.split(".")
            at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
            if at is not None:
                found.add((".".join(parts[:at]), int(parts[at])))
        stacks = {path for path, _ in found}
        if len(stacks) != 1:
            return None
        layers, first = network.get_submodule(stacks.pop()), min(number for _, number in found)
        if first == 0 or not isinstance(layers, nn.ModuleList):
            return None
        return Trunk(layers, first, budget_bytes)

    def reach(self, tokens: Tensor, mask: Tensor, run: Callable[[], object]) -> Tensor:
        """What reaches the first layer above the trunk: [b, t, d].

        Args:
            tokens: int64 [b, t].
            mask: int64 [b, t].
            run: passes them through the network; it is cut short above the trunk.
        """
        if self._last is not None and self._last[0] is tokens:
            return self._last[1]
        lengths = mask.sum(1).tolist()
        rows = [t[:n].cpu().numpy().tobytes() for t, n in zip(tokens, lengths, strict=True)]
        if self._kept and all(row in self._kept for row in rows):
            parts = [self._kept[row] for row in rows]
            hidden = parts[0].new_zeros((*tokens.shape, parts[0].shape[-1]))
            for i, part in enumerate(parts):
                hidden[i, : len(part)] = part
        else:
            hidden = self._compute(run)
            self._keep(rows, lengths, hidden)
        self._last = tokens, hidden
        return hidden

    def _keep(self, rows: list[bytes], lengths: list[int], hidden: Tensor) -> None:
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            size = length * hidden.shape[-1] * hidden.element_size()
            if row not in self._kept and size <= self._left:
                self._kept[row], self._left = hidden[i, :length].clone(), self._left - size

    def _compute(self, run: Callable[[], object]) -> Tensor:
        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached((args[0] if args else kwargs["hidden_states"]).detach())

        hook = self._layers[self._first].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():  # not inference_mode: forward mode must be able to use it
                run()
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
        raise AssertionError("the pass did not go through the stack of layers")

    @contextlib.contextmanager
    def skipped(self, hidden: Tensor) -> Iterator[None]:
        """Inside, the trunk is not computed: ``hidden`` is what reaches the layer above it."""

        def replace(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        below = self._layers[: self._first]
        for layer in below:
            layer.forward = _pass  # on the instance: the class's own comes back when it is deleted
        hook = self._layers[self._first].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            for layer in below:
                del layer.forward


class _Reached(Exception):
    """Carries what reached the layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _pass(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden_states
