"""FrozenPrefix: the layers below the first trained one, computed once for many passes over the same examples.

A method without backprop asks for the loss of one batch again and again, at weights that differ in the
upper layers only. What reaches the first of those is always the same: kept for the batch it saves the
frozen prefix in every pass but the first; kept for all examples, within a budget of memory
(:class:`PrefixCache`), in every step but the first that ever meets an example.

What is to be kept is computed for each example by itself, without padding. So it is a function of the
example: no bit of a loss depends on what was kept before, on batches, on other clients, or on a restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Run: TypeAlias = Callable[[Tensor, Tensor], object]
"""Passes tokens [b, t] and mask [b, t] through the network."""
Above: TypeAlias = Callable[[str, frozenset[str]], bool]
"""Tells of a stack's path and names of parameters whether all of them act above the stack."""


class PrefixCache:
    """What reached the layer above the frozen prefix, by example, up to so many bytes.

    Where room is wanting, examples make way that were not met since :meth:`begin`, the longest unused
    first. Those of the same task never do: met in turn, each would push out the next one needed.

    Args:
        budget_bytes: of hidden states.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes, self.used_bytes = budget_bytes, 0
        self._turn = 0
        self._rows: dict[bytes, tuple[Tensor, int]] = {}  # the longest unused first

    def begin(self) -> None:
        """Another task: what it does not meet may make way."""
        self._turn += 1

    def get(self, row: bytes) -> Tensor | None:
        """[t, d] of an example, if it is kept."""
        found = self._rows.pop(row, None)
        if found is None:
            return None
        self._rows[row] = found[0], self._turn
        return found[0]

    def put(self, row: bytes, hidden: Tensor) -> None:
        """Keep it, if there is room or room can be made."""
        size = hidden.numel() * hidden.element_size()
        if size > self.budget_bytes:
            return
        while self.used_bytes + size > self.budget_bytes:
            oldest = next(iter(self._rows), None)
            if oldest is None or self._rows[oldest][1] == self._turn:
                return
            left, _ = self._rows.pop(oldest)
            self.used_bytes -= left.numel() * left.element_size()
        self._rows[row] = hidden, self._turn
        self.used_bytes += size


class FrozenPrefix:
    """The part of a network below a layer.

    Args:
        layers: the network's stack, which this object borrows while it computes.
        first: the layers below this one are the frozen prefix.
        kept: hidden states from batch to batch; None: of the last batch only.
    """

    def __init__(self, layers: nn.ModuleList, first: int, kept: PrefixCache | None = None) -> None:
        self._layers, self.first, self._kept = layers, first, kept
        self._last: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def below(network: nn.Module, trained: Iterable[str], above: Above) -> FrozenPrefix | None:
        """What lies below every trained tensor.

        Args:
            network: whose stack of layers is looked for.
            trained: names of the trained parameters, as in ``network.named_parameters()``.
            above: whether parameters that are in no layer act above the stack, as a head's do; see
                :func:`all_above`.

        Returns:
            None if the first layer or something before it is trained, or if there is no one stack that all
            layers trained are in.
        """
        found, outside = set[tuple[str, int]](), set[str]()
        for name in trained:
            parts = name.split(".")
            at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
            if at is None:
                outside.add(name)
            else:
                found.add((".".join(parts[:at]), int(parts[at])))
        stacks = {path for path, _ in found}
        if len(stacks) != 1:
            return None
        stack, first = stacks.pop(), min(number for _, number in found)
        layers = network.get_submodule(stack)
        if first == 0 or not isinstance(layers, nn.ModuleList):
            return None
        if outside and not above(stack, frozenset(outside)):
            return None
        return FrozenPrefix(layers, first)

    def keeping(self, kept: PrefixCache) -> FrozenPrefix:
        """The same, which keeps what it computes in ``kept``."""
        return FrozenPrefix(self._layers, self.first, kept)

    def hidden(self, tokens: Tensor, mask: Tensor, run: Run) -> Tensor:
        """What reaches the first layer above the frozen prefix: [b, t, d].

        Where examples are kept it is zero in the padding, which nothing above may look at.

        Args:
            tokens: int64 [b, t].
            mask: int64 [b, t], ones to the left.
            run: is cut short above the frozen prefix.
        """
        if self._last is not None and self._last[0] is tokens:
            return self._last[1]
        hidden = self._compute(run, tokens, mask) if self._kept is None else self._gather(run, tokens, mask)
        self._last = tokens, hidden
        return hidden

    def _gather(self, run: Run, tokens: Tensor, mask: Tensor) -> Tensor:
        assert self._kept is not None
        parts = []
        for row, length in zip(tokens, mask.sum(1).tolist(), strict=True):
            name = row[:length].cpu().numpy().tobytes()
            part = self._kept.get(name)
            if part is None:
                # a copy: a view would hold what the pass made besides
                part = self._compute(run, row[None, :length], mask.new_ones(1, length))[0].clone()
                self._kept.put(name, part)
            parts.append(part)
        hidden = parts[0].new_zeros((*tokens.shape, parts[0].shape[-1]))
        for i, part in enumerate(parts):
            hidden[i, : len(part)] = part
        return hidden

    def _compute(self, run: Run, tokens: Tensor, mask: Tensor) -> Tensor:
        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached((args[0] if args else kwargs["hidden_states"]).detach())

        hook = self._layers[self.first].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            # not in inference_mode, even if the caller is: backprop and forward mode must be able to use it
            with torch.inference_mode(False), torch.no_grad():
                run(tokens, mask)
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
        raise AssertionError("the pass did not go through the stack of layers")

    @contextlib.contextmanager
    def skipped(self, hidden: Tensor) -> Iterator[None]:
        """Inside, the frozen prefix is not computed: ``hidden`` is what reaches the layer above it."""

        def replace(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        below = self._layers[: self.first]
        for layer in below:
            layer.forward = _pass  # on the instance: the class's own comes back when it is deleted
        hook = self._layers[self.first].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            for layer in below:
                del layer.forward


def all_above(network: nn.Module, stack: str, names: Iterable[str], run: Callable[[], object]) -> bool:
    """Whether a pass reaches the stack before any module that has one of these parameters in it.

    Args:
        network: that has them.
        stack: path of its layers.
        names: of parameters in no layer.
        run: passes something through the network; is cut short.
    """
    around = {stack[:i] for i, char in enumerate(stack) if char == "."} | {"", stack}
    owners = {name[:i] for name in names for i, char in enumerate(name) if char == "."} - around

    def touch(module: nn.Module, args: object) -> None:
        raise _Touched

    def arrive(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(torch.empty(0))

    hooks = [network.get_submodule(owner).register_forward_pre_hook(touch) for owner in owners]
    hooks.append(network.get_submodule(f"{stack}.0").register_forward_pre_hook(arrive))
    try:
        with torch.no_grad():
            run()
    except _Reached:
        return True
    except _Touched:
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return False  # the stack is not passed


class _Touched(Exception):
    """A pass came to a trained tensor."""


class _Reached(Exception):
    """Carries what reached the layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _pass(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden_states
