"""Our rules of forward mode against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.adapters import jvp_rules
from headwater.adapters.jvp_rules import ForwardADRules


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def derivative(function, values, moving, *, ours):
    """Value and tangent of ``function`` of ``values``, of which those in ``moving`` have a tangent."""
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        tangents = [normal(*v.shape, seed=90 + i) for i, v in enumerate(values)]
        duals = [
            forward_ad.make_dual(v, t) if i in moving else v
            for i, (v, t) in enumerate(zip(values, tangents, strict=True))
        ]
        if ours:
            with ForwardADRules():
                out = function(*duals)
        else:
            out = function(*duals)
        found = forward_ad.unpack_dual(out)
        return found.primal.clone(), None if found.tangent is None else found.tangent.clone()


def same(function, values, moving):
    ours = derivative(function, values, moving, ours=True)
    torchs = derivative(function, values, moving, ours=False)
    for mine, oracle in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-4, atol=1e-5)
    return ours


HOLES = torch.rand((2, 1, 5, 7), generator=torch.Generator().manual_seed(1)) > 0.4
HOLES[1, :, 3] = False  # a token that sees nothing
MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": HOLES},
    "float": {"attn_mask": normal(5, 7, seed=8)},
    "scale": {"scale": 0.3},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 2), (0, 1, 2), ()], ids=str)
def test_attention(mask, moving, monkeypatch):
    monkeypatch.setattr(jvp_rules, "_PAIRS", 3 * 5 * 7)  # three heads of four, then one
    values = [normal(2, 4, 5, 6, seed=0), normal(2, 4, 7, 6, seed=1), normal(2, 4, 7, 3, seed=2)]
    _, tangent = same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **MASKS[mask]), values, moving)
    assert (tangent is None) == (not moving)


def test_grouped_attention():
    values = [normal(2, 4, 5, 6, seed=0), normal(2, 2, 5, 6, seed=1), normal(2, 2, 5, 6, seed=2)]
    same(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        values,
        (0, 1, 2),
    )


@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1, 2), ()], ids=str)
def test_linear(moving):
    values = [normal(2, 3, 4, seed=0), normal(5, 4, seed=1), normal(5, seed=2)]
    same(F.linear, values, moving)
    same(lambda bias, x, w: torch.addmm(bias, x[0], w.T), [values[2], values[0], values[1]], moving)
    same(lambda bias, x, w: torch.addmm(bias, x[0], w.T, beta=2.0), [values[2], values[0], values[1]], moving)


def test_the_rules_are_used(monkeypatch):
    """They replace what torch does: without a zero tangent of the weight, and without its attention."""
    seen = []
    for function, rule in dict(jvp_rules._RULES).items():
        monkeypatch.setitem(
            jvp_rules._RULES, function, lambda *a, rule=rule, **k: seen.append(rule) or rule(*a, **k)
        )
    values = [normal(2, 4, 5, 6, seed=0), normal(6, 6, seed=1)]
    derivative(lambda x, w: F.scaled_dot_product_attention(F.linear(x, w), x, x), values, (0,), ours=True)
    assert seen == [jvp_rules._linear, jvp_rules._attention]
