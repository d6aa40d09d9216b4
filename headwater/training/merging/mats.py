"""What rule ``mats`` measures: Grams of each layer's inputs, and of the gradients by its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from headwater.errors import ModelError
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.mats import Mats
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example, batches
from headwater.training.merging.fisher import drawn_rows
from headwater.training.merging.network import RowsNetwork
from headwater.training.merging.regmean import (
    input_grams,
    linear_layers,
    notes_of,
    require_adding,
    without_padding,
)
from headwater.training.score import reading_of

_FAR = 1e-3
"""What may be left of the equations without a word."""


def measure_mats(
    network: RowsNetwork,
    rule: Mats,
    rows: Sequence[Sequence[Example]],
    *,
    seed: int,
    progress: Callable[[str], None],
) -> Measured:
    """The merged changes.

    Args:
        network: of the base.
        rule: with its settings.
        rows: of each adapter, with what is to be learnt.
        seed: draws rows, where there are more than the rule looks at.
        progress: is told which adapter is at work.

    Raises:
        ModelError: DoRA, whose layers do more than add; inputs or gradients that are not finite.
    """
    adapters = network.adapters
    require_adding(network, rule)
    layers = linear_layers(network)
    bases = {module: Basis.of_changes(adapters, module) for module in layers}
    cores: dict[str, list[Floats]] = {module: [] for module in layers}
    inner: dict[str, list[Floats]] = {module: [] for module in layers}
    outer: dict[str, list[Floats]] = {module: [] for module in layers}
    looked_at = []
    for index, folder in enumerate(adapters.folders):
        progress(f"inputs and gradients of {index + 1} of {len(adapters)} adapters")
        key = Key.root(seed).child("merge", "mats", folder.digest)
        chosen = drawn_rows(rows[index], rule.examples, key)
        grams = input_grams(network, network.own(index), chosen, layers, bases)
        gradients = output_grams(network, index, chosen, bases)
        for module in layers:
            if not (np.isfinite(grams[module]).all() and np.isfinite(gradients[module]).all()):
                raise ModelError(
                    f"{folder.path}, module {module}", expected="finite inputs and gradients", got="others"
                )
            cores[module].append(bases[module].core(*folder.factors(module)))
            inner[module].append(rule.shrunk(grams[module]))
            outer[module].append(rule.shrunk(gradients[module]))
        looked_at.append(len(chosen))
    changes, left = {}, 0.0
    for module in layers:
        core, rest = rule.matched(cores[module], outer[module], inner[module], network.shares)
        changes[module], left = (bases[module], core), max(left, rest)
    far = (f"after {rule.iterations} steps {left:.1e} of the equations is left",) if left > _FAR else ()
    return Measured(
        changes=changes,
        facts={"rows": looked_at, "left": left},
        notes=(*notes_of(adapters.modules, layers), *far),
    )


def output_grams(
    network: RowsNetwork, index: int, examples: Sequence[Example], bases: Mapping[str, Basis]
) -> dict[str, Floats]:
    """UᵀE[g·gᵀ]U over tokens, float64, by module: g the gradient of its row's loss by a layer's outputs.

    Args:
        network: of the base.
        index: of the adapter whose values the network has.
        examples: its rows.
        bases: U by module, of the layers that are looked at; it may be the identity.
    """
    turns = {m: None if (u := basis.left) is None else network.tensor(u) for m, basis in bases.items()}
    values = {name: value.requires_grad_() for name, value in network.own(index).items()}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(bases, 0)
    size = reading_of(network.predictor).batch_size
    with _kept_outputs(network, bases) as outputs, torch.enable_grad():
        for batch in batches(examples, size, network.pad, generator=None):
            outputs.clear()
            loss = network.forward(values, batch).losses.sum()
            names = sorted(outputs)
            found = torch.autograd.grad(loss, [outputs[name] for name in names])
            for name, gradient in zip(names, found, strict=True):
                seen = without_padding(gradient, batch.mask.bool())
                turn = turns[name]
                seen = seen if turn is None else seen @ turn
                gram = (seen.T @ seen).double()
                sums[name] = sums[name].add_(gram) if name in sums else gram
                counts[name] += len(seen)
    return {name: (total / max(1, counts[name])).cpu().numpy() for name, total in sums.items()}


@contextmanager
def _kept_outputs(network: RowsNetwork, modules: Mapping[str, Basis]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of each adapted layer in the last pass, by module."""
    outputs: dict[str, Tensor] = {}

    def hook(module: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[module] = output

        return keep

    handles = []
    for module in modules:
        name = network.names[network.folder.modules[module].a].rpartition(".lora_A.")[0]
        handles.append(network.predictor.network.get_submodule(name).register_forward_hook(hook(module)))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
