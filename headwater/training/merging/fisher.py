"""What rule ``fisher`` measures: each adapter's diagonal Fisher in the coordinates that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from headwater.adapters.model import Output, output_of
from headwater.errors import ModelError
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.fisher import Fisher
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec
from headwater.tasks.batches import Batch, Example
from headwater.tasks.table import AnyTask
from headwater.training.fisher import fisher_by_loop
from headwater.training.merging.network import RowsNetwork, Values


class CoreModel:
    """One adapter as parameters: a core C for each LoRA module, τ = U·C·Vᵀ, and all other tensors.

    Args:
        network: of the base.
        bases: U and V by module.
        values: C by module, and the other tensors by name.
    """

    def __init__(
        self, network: RowsNetwork, bases: Mapping[str, Basis], values: Mapping[str, Floats]
    ) -> None:
        self._network, self._bases = network, bases
        self.spec = StateSpec(tuple(TensorSpec(name, v.shape, "core") for name, v in sorted(values.items())))
        self._parameters = {name: Parameter(network.tensor(values[name])) for name in sorted(values)}

    @property
    def task(self) -> AnyTask:
        """What is learnt."""
        return self._network.task

    def parameters(self) -> list[tuple[TensorSpec, Parameter]]:
        """All, in the order of :attr:`spec`."""
        return [(spec, self._parameters[spec.name]) for spec in self.spec]

    def forward(self, batch: Batch) -> Output:
        """Logits and losses, with gradients."""
        values: Values = {}
        for name, parameter in self._parameters.items():
            if (basis := self._bases.get(name)) is not None:
                values |= self._network.change(name, basis, parameter)
            else:
                values |= self._network.plain(name, parameter)
        return self._network.forward(values, batch)

    def output(self, logits: Tensor, targets: Tensor) -> Output:
        """The losses of ``logits`` against ``targets``."""
        return output_of(self.task, logits, targets)


def measure_fisher(
    network: RowsNetwork,
    rule: Fisher,
    rows: Sequence[Sequence[Example]],
    *,
    seed: int,
    progress: Callable[[str], None],
) -> Measured:
    """The merged cores and other tensors.

    Args:
        network: of the base.
        rule: with its settings.
        rows: of each adapter.
        seed: draws rows, where there are more than the rule looks at, and labels.
        progress: is told which adapter is at work.

    Raises:
        ModelError: gradients of an adapter are not finite.
    """
    adapters = network.adapters
    bases = {module: Basis.of_changes(adapters, module) for module in adapters.modules}
    looked_at = []
    totals: dict[str, Floats] = {}
    masses: dict[str, Floats] = {}
    for index, folder in enumerate(adapters.folders):
        progress(f"Fisher of {index + 1} of {len(adapters)} adapters")
        own = {m: bases[m].core(*folder.factors(m)) for m in adapters.modules}
        own |= {name: adapters.value(index, name) for name in adapters.plain}
        key = Key.root(seed).child("merge", "fisher", folder.digest)
        chosen = drawn_rows(rows[index], rule.examples, key)
        with torch.enable_grad():
            found = fisher_by_loop(CoreModel(network, bases, own), chosen, pad=network.pad, key=key)
        if not found.isfinite():
            raise ModelError(f"{folder.path}", expected="a finite Fisher", got="gradients that are not")
        for name, fisher in rule.scaled({k: t.double().numpy() for k, t in found.items()}).items():
            mass = rule.masses(fisher, float(network.shares[index]))
            totals[name] = totals.get(name, 0.0) + mass * own[name]
            masses[name] = masses.get(name, 0.0) + mass
        looked_at.append(len(chosen))
    merged = {name: totals[name] / masses[name] for name in totals}
    return Measured(
        changes={module: (bases[module], merged[module]) for module in adapters.modules},
        values={name: merged[name] for name in adapters.plain},
        facts={"rows": looked_at},
    )


def drawn_rows(examples: Sequence[Example], most: int, key: Key) -> list[Example]:
    """At most ``most`` of them, drawn, in their order."""
    order = key.child("examples").numpy().permutation(len(examples))[:most]
    return [examples[i] for i in sorted(order)]
