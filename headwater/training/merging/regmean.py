"""What rule ``regmean`` measures: Gram matrices of the inputs that each layer has in each adapter's model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from headwater.errors import ModelError
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.peft_folder import MAGNITUDES
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.regmean import RegMean, RegMeanPlusPlus, blocks_of
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example, batches
from headwater.training.merging.fisher import drawn_rows
from headwater.training.merging.network import RowsNetwork, Values
from headwater.training.score import reading_of

Progress = Callable[[str], None]


def measure_regmean(
    network: RowsNetwork,
    rule: RegMean,
    rows: Sequence[Sequence[Example]],
    *,
    whole: bool,
    seed: int,
    progress: Callable[[str], None],
) -> Measured:
    """The merged changes, in closed form.

    Args:
        network: of the base.
        rule: with its settings.
        rows: of each adapter.
        whole: whether with whole Grams [in, in] (space ``product``), or in the space ``core``.
        seed: draws rows, where there are more than the rule looks at.
        progress: is told which adapter is at work.

    Raises:
        ModelError: DoRA, whose layers do more than add; inputs that are not finite.
    """
    adapters = network.adapters
    require_adding(network, rule)
    layers = linear_layers(network)
    bases = {module: Basis.of_changes(adapters, module, columns=not whole) for module in layers}
    chosen = [
        drawn_rows(rows[i], rule.examples, Key.root(seed).child("merge", "regmean", folder.digest))
        for i, folder in enumerate(adapters.folders)
    ]
    stepwise = isinstance(rule, RegMeanPlusPlus)
    blocks = blocks_of(layers) if stepwise else [list(layers)]
    changes: dict[str, tuple[Basis, Floats]] = {}
    below: Values = {}
    equations = _Equations(network, rule, chosen, bases)
    for number, block in enumerate(blocks):
        part = f"layer {number + 1} of {len(blocks)}, " if stepwise else ""
        watched = {module: layers[module] for module in block}
        merged = equations.solved(watched, below, partial(_tell, progress, part))
        for module, core in merged.items():
            changes[module] = (bases[module], core)
            below |= network.change(module, bases[module], network.tensor(core))
        below |= network.averaged(_beside(block, adapters.plain))
    return Measured(
        changes=changes,
        facts={"rows": [len(part) for part in chosen]},
        notes=notes_of(adapters.modules, layers),
    )


def require_adding(network: RowsNetwork, rule: RegMean) -> None:
    """Refuse DoRA.

    Raises:
        ModelError: it is DoRA.
    """
    if any(name.endswith(MAGNITUDES) for name in network.adapters.plain):
        raise ModelError(
            f"{network.adapters.first.path}",
            expected=f"LoRA that adds, for rule {rule.name}",
            got="DoRA",
            hint="Use mean.",
        )


def notes_of(modules: Sequence[str], layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """What is said of LoRA modules that are on no linear layers."""
    missing = sorted(set(modules) - layers.keys())
    return (f"averaged, since they are no linear layers: {', '.join(missing)}",) if missing else ()


def _tell(progress: Progress, part: str, text: str) -> None:
    progress(part + text)


@dataclass(frozen=True)
class _Equations:
    """The normal equations of some layers, from the rows of all adapters."""

    network: RowsNetwork
    rule: RegMean
    rows: Sequence[Sequence[Example]]
    bases: Mapping[str, Basis]

    def solved(self, layers: Mapping[str, nn.Module], below: Values, tell: Progress) -> dict[str, Floats]:
        """The merged cores of ``layers``; ``below`` is put in place of what the adapters have there."""
        adapters, found = self.network.adapters, {}
        products: dict[str, Floats] = {}
        grams: dict[str, Floats] = {}
        for index, folder in enumerate(adapters.folders):
            tell(f"inputs of {index + 1} of {len(adapters)} adapters")
            values = self.network.own(index) | below
            found = input_grams(self.network, values, self.rows[index], layers, self.bases)
            for module, raw in found.items():
                if not np.isfinite(raw).all():
                    raise ModelError(
                        f"{folder.path}, module {module}", expected="finite inputs", got="others"
                    )
                gram = self.network.shares[index] * self.rule.shrunk(raw)
                core = self.bases[module].core(*folder.factors(module))
                products[module] = products.get(module, 0.0) + core @ gram
                grams[module] = grams.get(module, 0.0) + gram
        return {module: self.rule.solve(products[module], grams[module]) for module in found}


def _beside(block: Sequence[str], plain: Sequence[str]) -> list[str]:
    """Other tensors of the same numbered layer."""
    for names in blocks_of([*block, *plain]):
        if block[0] in names:
            return [name for name in names if name in plain]
    return []


def input_grams(
    network: RowsNetwork,
    values: Values,
    examples: Sequence[Example],
    layers: Mapping[str, nn.Module],
    bases: Mapping[str, Basis],
) -> dict[str, Floats]:
    """VᵀE[x·xᵀ]V over the tokens that a layer sees, float64, by module; V may be the identity.

    Args:
        network: of the base.
        values: of one adapter.
        examples: its rows.
        layers: what is given the same inputs as each LoRA module.
        bases: V by module.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    turns = {m: None if (v := bases[m].right) is None else network.tensor(v) for m in layers}
    mask = torch.empty(0)

    def seen(module: str, given: Tensor) -> None:
        inputs = without_padding(given, mask)
        if (turn := turns[module]) is not None:
            inputs = inputs @ turn
        gram = (inputs.T @ inputs).double()
        sums[module] = sums[module].add_(gram) if module in sums else gram
        counts[module] += len(inputs)

    size = reading_of(network.predictor).batch_size
    with _watched(layers, seen), torch.no_grad():
        for batch in batches(examples, size, network.pad, generator=None):
            mask = batch.mask.bool()
            network.forward(values, batch)
    return {module: (total / max(1, counts[module])).cpu().numpy() for module, total in sums.items()}


def without_padding(given: Tensor, mask: Tensor) -> Tensor:
    """[n, in]: of a layer's inputs [b, t, in] or [b·t, in] the tokens' rows; others as they are."""
    rows = given.reshape(-1, given.shape[-1])
    return rows[mask.reshape(-1).to(rows.device)] if len(rows) == mask.numel() else rows


@contextlib.contextmanager
def _watched(layers: Mapping[str, nn.Module], seen: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, ``seen`` is told the inputs of each layer."""

    def hook(module: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: seen(module, inputs[0].detach())

    handles = [layer.register_forward_pre_hook(hook(module)) for module, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def linear_layers(network: RowsNetwork) -> dict[str, nn.Module]:
    """Of each LoRA module on a linear layer its A, which is given what the layer is given."""
    found: dict[str, nn.Module] = {}
    for module, part in network.folder.modules.items():
        name = network.names[part.a].removesuffix(".weight")
        layer = dict(network.predictor.network.named_modules()).get(name)
        if isinstance(layer, nn.Linear):
            found[module] = layer
    return found
