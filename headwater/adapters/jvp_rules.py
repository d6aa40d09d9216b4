"""Cheaper exact forward mode for the two operations that cost most: :class:`ForwardADRules`.

Torch's own rules do more than is needed. For ``linear`` with a frozen weight they make a tangent of zeros
as large as the weight and multiply by it: half as much work again, and the largest matrix once more in
memory. Attention holds five or more values for every pair of tokens of the whole batch. Here ``linear`` is
two products, and attention goes through some heads of one row of the batch at a time (P = softmax(S),
S = sQKᵀ + M)::

    dS = s(dQ Kᵀ + Q dKᵀ),   dP = P∘dS − P·rowsum(P∘dS),   dO = dP V + P dV

What a rule does not cover (it returns None) is left to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

_PAIRS = 2**20
"""Pairs of tokens of which attention holds values at a time: 4 MiB of float32 for each of four tensors."""


class ForwardADRules(TorchFunctionMode):
    """Inside, ``linear``, ``addmm`` and attention of dual numbers follow the rules of this module."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        result = None if rule is None else rule(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    primal, tangent = _parts(input)
    if tangent is None or _moves(weight) or _moves(bias):
        return None
    return _dual(F.linear(primal, weight, bias), F.linear(tangent, weight))


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, **scales: float) -> Tensor | None:
    """GPT-2's linear layer."""
    primal, tangent = _parts(x)
    if tangent is None or scales or _moves(weight) or _moves(bias):
        return None
    return _dual(torch.addmm(bias, primal, weight), tangent @ weight)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Query [b, h, t, e], key [b, h', s, e], value [b, h', s, e'], mask broadcast to [b, h, t, s]."""
    if not any(map(_moves, (query, key, value))) or _moves(attn_mask) or dropout_p or query.dim() != 4:
        return None
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    (q, dq), (k, dk), (v, dv) = _parts(query), _parts(key), _parts(value)
    b, h, t, s = *q.shape[:3], k.shape[2]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    mask = None if attn_mask is None else attn_mask.expand(b, h, t, s)
    if is_causal:
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril().expand(b, h, t, s)
    out, tangent = q.new_empty(b, h, t, v.shape[-1]), q.new_empty(b, h, t, v.shape[-1])
    heads = max(1, _PAIRS // (t * s))
    for row in range(b):
        for first in range(0, h, heads):
            at = (row, slice(first, first + heads))
            p = _softmax(q[at] @ k[at].mT * scale, None if mask is None else mask[at])
            ds = torch.zeros_like(p)
            if dq is not None:
                ds += dq[at] @ k[at].mT
            if dk is not None:
                ds += q[at] @ dk[at].mT
            ds.mul_(scale).mul_(p)
            ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1)
            out[at] = p @ v[at]
            tangent[at] = ds @ v[at]
            if dv is not None:
                tangent[at] += p @ dv[at]
    return _dual(out, tangent)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Over the last axis; zeros where all is masked, as torch's attention has it."""
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill_(~mask, -math.inf)
    else:
        scores += mask
    nothing = scores.amax(-1, keepdim=True) == -math.inf
    return scores.softmax(-1).masked_fill_(nothing, 0.0)


def _parts(value: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return primal, tangent


def _moves(value: Tensor | None) -> bool:
    return value is not None and _parts(value)[1] is not None


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]  # likewise
    return dual


_RULES: Mapping[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.scaled_dot_product_attention: _attention,
}
