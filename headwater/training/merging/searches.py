"""How ``lorahub``, ``fw`` and ``adamerging`` find their coefficients.

Each also measures the mean of the adapters, and takes nothing that is worse by the rule's own objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.errors import TrainingError
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.searched import AdaMerging, FrankWolfe, LoraHub
from headwater.seeds.keys import Key
from headwater.tasks.batches import Batch, Example, batches
from headwater.training.evolution import evolution, silent
from headwater.training.merging.coefficients import Sums
from headwater.training.merging.network import RowsNetwork

Progress = Callable[[str], None]
_WORST = 1e300
"""What a candidate counts whose loss is not finite."""


def search_lorahub(
    network: RowsNetwork, rule: LoraHub, rows: Sequence[Example], *, seed: int, progress: Progress
) -> Measured:
    """Coefficients by CMA-ES on the loss of ``rows``.

    Args:
        network: of the base.
        rule: with its settings.
        rows: on which.
        seed: of the search.
        progress: is told how far it is.
    """
    sums, count = Sums(network), len(network.adapters)

    def objective(c: Floats) -> float:
        try:
            return sums.loss(c, rows) + rule.penalty * float(np.abs(c).mean())
        except TrainingError:  # a loss that is not finite: a bad candidate, and no end
            return _WORST

    tried = [(objective(c), c.tolist()) for c in (np.full(count, 1 / count), np.zeros(count))]
    search = evolution(count, rule.bound / 3, Key.root(seed).child("merge", "lorahub"), bound=rule.bound)
    while len(tried) < rule.evaluations + 2:
        progress(f"candidate {len(tried) - 1} of {rule.evaluations}")
        asked = search.ask()
        losses = [objective(c) for c in asked[: rule.evaluations + 2 - len(tried)]]
        tried += [(loss, c.tolist()) for loss, c in zip(losses, asked, strict=False)]
        if len(losses) == len(asked):
            with silent():
                search.tell(asked, losses)
    best, found = min(tried)
    return Measured(
        coefficients=sums.by_key(np.array(found)),
        facts={
            "rows": len(rows),
            "objective": best,
            "objective_of_mean": tried[0][0],
            "candidates": len(tried),
        },
        notes=(_told(best, tried[0][0]),),
    )


def search_frank_wolfe(
    network: RowsNetwork, rule: FrankWolfe, rows: Sequence[Example], *, progress: Progress
) -> Measured:
    """Shares by Frank-Wolfe steps on the loss of ``rows``.

    Args:
        network: of the base.
        rule: with its settings.
        rows: on which.
        progress: is told how far it is.
    """
    sums = Sums(network)
    shares = network.shares
    losses = [sums.loss(shares, rows)]
    steps, taken = [shares], list[int]()
    for step in range(rule.iterations):
        progress(f"step {step + 1} of {rule.iterations}")
        slopes = _slopes(sums, steps[-1], rows)
        best, part = int(slopes.argmin()), 2 / (step + 2)
        steps.append((1 - part) * steps[-1] + part * np.eye(len(slopes))[best])
        losses.append(sums.loss(steps[-1], rows))
        taken.append(best)
    at = int(np.argmin(losses))
    names = [str(folder.path) for folder in network.adapters.folders]
    return Measured(
        coefficients=sums.by_key(steps[at]),
        facts={
            "rows": len(rows),
            "objective": losses[at],
            "objective_of_mean": losses[0],
            "steps_towards": [names[k] for k in taken[:at]],
        },
        notes=(_told(losses[at], losses[0]),),
    )


def _slopes(sums: Sums, shares: Floats, rows: Sequence[Example]) -> Floats:
    """∂L/∂c_k = ⟨∇L, τ_k⟩ [T] of the loss summed over targets."""
    total = np.zeros(len(shares))
    for batch in sums.batches(rows):
        c = sums.network.tensor(shares).requires_grad_(True)
        with torch.enable_grad():
            loss = sums.network.forward(sums.values(c), batch).losses.sum()
        (slope,) = torch.autograd.grad(loss, [c])
        total += slope.double().cpu().numpy()
    if not np.isfinite(total).all():
        raise TrainingError("rule fw", expected="finite slopes of the loss", got="others")
    return total


def search_adamerging(
    network: RowsNetwork, rule: AdaMerging, rows: Sequence[Example], *, seed: int, progress: Progress
) -> Measured:
    """Layer-wise coefficients by Adam on the entropy of the answers to ``rows``.

    Args:
        network: of the base.
        rule: with its settings.
        rows: on which; their labels are not looked at.
        seed: draws the order of rows.
        progress: is told how far it is.
    """
    sums = Sums(network)
    start = network.tensor(np.tile(network.shares, (len(sums.keys), 1)))
    first = _entropy(sums, start, rows)
    c = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([c], lr=rule.learning_rate)
    for step, batch in enumerate(
        _endless(rows, rule, network.pad, Key.root(seed).child("merge", "adamerging"))
    ):
        if step == rule.steps:
            break
        progress(f"step {step + 1} of {rule.steps}")
        with torch.enable_grad():
            entropy = entropies(network.forward(sums.values(c), batch).logits).mean()
        (c.grad,) = torch.autograd.grad(entropy, [c])
        adam.step()
    last = _entropy(sums, c.detach(), rows)
    better = math.isfinite(last) and last <= first
    return Measured(
        coefficients=sums.by_key((c if better else start).detach().double().cpu().numpy()),
        facts={"rows": len(rows), "objective": last if better else first, "objective_of_mean": first},
        notes=(_told(last if better else first, first),),
    )


def _told(best: float, mean: float) -> str:
    if best == mean:
        return (
            f"the search found nothing better than the mean, whose objective is {mean:.4g}: this is the mean"
        )
    return f"on the rows that were looked at the rule's objective is {best:.4g}; the mean's is {mean:.4g}"


def entropies(logits: Tensor) -> Tensor:
    """−Σ p·log p [b] of logits [b, labels]."""
    logs = logits.log_softmax(-1)
    found: Tensor = -(logs.exp() * logs).sum(-1)
    return found


def _entropy(sums: Sums, c: Tensor, rows: Sequence[Example]) -> float:
    """The mean over all rows."""
    values, total = sums.values(c), 0.0
    with torch.inference_mode():
        for batch in sums.batches(rows):
            total += entropies(sums.network.forward(values, batch).logits).double().sum().item()
    return total / len(rows)


def _endless(rows: Sequence[Example], rule: AdaMerging, pad: int, key: Key) -> Iterator[Batch]:
    generator = key.numpy()
    while True:
        yield from batches(rows, rule.batch_size, pad, generator=generator)
