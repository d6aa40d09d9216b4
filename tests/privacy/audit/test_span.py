"""Inputs read out of LoRA's gradients, as autograd gives them; and what hides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.privacy.audit.span import directions, energies, residuals

WORDS, WIDTH = 500, 48


def gradient_of_a(tokens, rank, seed=0):
    """Of y = (W + BA)x over the embeddings of some tokens, and the embeddings of all words."""
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(WORDS, WIDTH, generator=draw)
    a = torch.randn(rank, WIDTH, generator=draw).requires_grad_()
    b = torch.randn(WIDTH, rank, generator=draw)
    out = embeddings[tokens] @ a.T @ b.T
    out.tanh().square().sum().backward()
    return a.grad.numpy(), embeddings.numpy()


@pytest.mark.parametrize("count", [1, 5, 8])
def test_up_to_the_rank_all_tokens_and_no_others_are_read(count):
    tokens = torch.arange(0, 10 * count, 10)
    gradient, embeddings = gradient_of_a(tokens, rank=8)
    found = np.flatnonzero(residuals(gradient, directions(embeddings)) < 1e-3)
    assert found.tolist() == tokens.tolist()


def test_beyond_the_rank_the_span_tells_nothing():
    tokens = torch.arange(20)
    gradient, embeddings = gradient_of_a(tokens, rank=8)
    apart = residuals(gradient, directions(embeddings))
    assert apart.min() > 0.3
    top = np.argsort(-energies(gradient, directions(embeddings, centred=True)))[:20]
    assert np.isin(top, tokens).mean() > 5 * 20 / WORDS  # a ranking is still far above chance


def test_noise_moves_all_out_of_the_span():
    gradient, embeddings = gradient_of_a(torch.arange(5), rank=8)
    noised = gradient + np.random.default_rng(0).normal(0, np.abs(gradient).mean(), gradient.shape)
    assert residuals(noised, directions(embeddings))[:5].min() > 0.1


def test_a_gradient_of_zero_holds_nothing():
    assert np.allclose(residuals(np.zeros((4, WIDTH)), np.eye(WIDTH)), 1)
    assert np.allclose(energies(np.zeros((4, WIDTH)), np.eye(WIDTH)), 0)
