"""RowsNetwork: one base model that computes with any merge of the adapters, without writing one to disk.

The network is the one that ``headwater predict`` opens for one of the adapters. What PEFT holds in it is
replaced for the length of a pass: factors of any rank, heads and all else by the names of the adapter's file.
So values may have gradients, and every row is read and every loss computed as everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from headwater.adapters.model import Output, output_of
from headwater.adapters.predict import Predictor
from headwater.adapters.saved_names import saved_parameters, unscale
from headwater.config.origin import base_of_run
from headwater.errors import ModelError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.rule import Floats
from headwater.tasks.batches import Batch, Example
from headwater.tasks.table import AnyTask
from headwater.training.evaluate import measure
from headwater.training.score import reading_of

Values = dict[str, Tensor]
"""By the network's names of its parameters."""


@dataclass(frozen=True)
class RowsNetwork:
    """The base, and the adapters' tensors to put into it. Make it with :meth:`open`.

    Args:
        adapters: that are merged.
        predictor: of one of them.
        folder: that one.
    """

    adapters: Adapters
    predictor: Predictor
    folder: PeftFolder

    @staticmethod
    def open(adapters: Adapters, base: str | None) -> RowsNetwork:
        """Load the base model.

        Args:
            adapters: that fit together; one must be a folder that says how its rows are read.
            base: where the base model is, if not where that folder says.

        Raises:
            ModelError: no such folder; a kind of adapter that is not LoRA's; a base that cannot be loaded.
        """
        folder = next((f for f in adapters.named if f.notes and f.path.is_dir()), None)
        if folder is None:
            raise ModelError(
                f"{adapters.first.path}",
                expected="with --data an adapter whose headwater.json says how rows are read",
                got="none among them",
                hint="Adapters that a run of Headwater exported have one; unpack .hw files with decompress.",
            )
        _require_plain_lora(folder)
        predictor = Predictor.open(folder.path, base=base or base_of_run(folder.path))
        reading_of(predictor)
        unscale(predictor.network)  # no bit of a merge depends on whose network it is
        found = RowsNetwork(adapters, predictor, folder)
        found._require_named()
        return found

    @property
    def task(self) -> AnyTask:
        """What is learnt from rows."""
        return self.predictor.task

    @property
    def pad(self) -> int:
        """The token id that fills a batch."""
        return self.predictor.base.tokenizer.pad

    @cached_property
    def names(self) -> dict[str, str]:
        """The network's name of each tensor by the adapters'."""
        return saved_parameters(self.predictor.network)

    @cached_property
    def movable(self) -> list[str]:
        """Of the other tensors those that are merged by what changed in them, and not averaged."""
        return [name for name in self.adapters.plain if self.adapters.origin(name) is not None]

    @cached_property
    def shares(self) -> Floats:
        """The adapters' weights as parts of one [T]."""
        found: Floats = self.adapters.weights / self.adapters.weights.sum()
        return found

    def tensor(self, values: Floats) -> Tensor:
        """float32 on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.predictor.base.device)

    def lora(self, module: str, b: Tensor, a: Tensor) -> Values:
        """A module's change B·A, B [rows, r] and A [r, columns], of any rank r."""
        part = self.folder.modules[module]
        return {
            self.names[part.a]: a.reshape(a.shape[0], *part.shape_a[1:]),
            self.names[part.b]: b.reshape(part.rows, b.shape[1], *part.shape_b[2:]),
        }

    def change(self, module: str, basis: Basis, core: Tensor) -> Values:
        """A module's change U·C·Vᵀ."""
        left = None if basis.left is None else self.tensor(basis.left)
        right = None if basis.right is None else self.tensor(basis.right)
        if right is not None:
            return self.lora(module, core if left is None else left @ core, right.T)
        if left is not None:
            return self.lora(module, left, core)
        return self.lora(module, torch.eye(len(core), device=core.device), core)

    def plain(self, name: str, value: Tensor) -> Values:
        """One other tensor, as :meth:`Adapters.value` has it, with s in the bias of a LoRA factor."""
        return {self.names[name]: value}

    def own(self, index: int) -> Values:
        """One adapter's own values."""
        found: Values = {}
        for module in self.adapters.modules:
            b, a = self.adapters.folders[index].factors(module)
            found |= self.lora(module, self.tensor(b), self.tensor(a))
        for name in self.adapters.plain:
            found |= self.plain(name, self.tensor(self.adapters.value(index, name)))
        return found

    def averaged(self, names: Sequence[str] | None = None) -> Values:
        """Weighted means of the other tensors; of all of them without ``names``."""
        found: Values = {}
        for name in self.adapters.plain if names is None else names:
            values = [share * self.adapters.value(i, name) for i, share in enumerate(self.shares)]
            found |= self.plain(name, self.tensor(np.sum(values, axis=0)))
        return found

    def forward(self, values: Mapping[str, Tensor], batch: Batch) -> Output:
        """Logits and losses of ``batch``; gradients flow to ``values`` if the caller enables them."""
        device = self.predictor.base.device
        given = (batch.tokens.to(device), batch.mask.to(device))
        logits = functional_call(self.predictor.network, dict(values), given)
        return output_of(self.task, logits, batch.targets.to(logits.device))

    def loss(self, values: Mapping[str, Tensor], examples: Sequence[Example]) -> float:
        """The mean loss over the targets of ``examples``, as evaluations measure it.

        Raises:
            TrainingError: it is not finite.
        """
        _, metrics = measure(
            lambda batch: self.forward(values, batch),
            self.task,
            examples,
            batch_size=reading_of(self.predictor).batch_size,
            pad=self.pad,
        )
        return metrics["loss"]

    def _require_named(self) -> None:
        parts = self.adapters.first.modules.values()
        for name in [*self.adapters.plain, *(part.a for part in parts), *(part.b for part in parts)]:
            if name not in self.names:
                raise ModelError(
                    f"{self.folder.path}, tensor {name}",
                    expected="a parameter of the base model with its adapter",
                    got="none of that name",
                    hint="Is --base the adapters' base?",
                )


def _require_plain_lora(folder: PeftFolder) -> None:
    """Refuse adapters whose tensors cannot be replaced by ones of another rank."""
    odd = next((part for part in folder.modules.values() if part.e or part.experts > 1), None)
    if not folder.modules or odd is not None:
        raise ModelError(
            f"{folder.path}",
            expected="LoRA on weights, for a rule that goes by rows",
            got=f"{folder.config['peft_type']}" + (" on fused experts" if odd and not odd.e else ""),
            hint="Use a rule without --data.",
        )
