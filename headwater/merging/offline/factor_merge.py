"""Rules that look at LoRA's factors: those of all adapters side by side, and adapters that are compressed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.low_rank import balanced
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.rule import FactorRule, Floats, ValueRule


def merged_factors(
    rule: FactorRule, adapters: Adapters, weights: Floats, module: str, *, raw: bool, task: int | None
) -> tuple[Floats, Floats]:
    """B [rows, R] and A [R, columns] of a module's merged change.

    Args:
        rule: which.
        adapters: of any ranks; of one rank with ``raw``.
        weights: [T].
        module: its name.
        raw: whether the factors are those of the files.
        task: which of ``adapters.folders`` is given back; None for the merge.
    """
    ups, downs = stacked_factors(adapters, module, raw=raw)
    if task is None:
        return rule.merge(ups, downs, weights)
    return rule.give_back(ups, downs, weights, task)


def stacked_factors(adapters: Adapters, module: str, *, raw: bool) -> tuple[Floats, Floats]:
    """B [T, rows, r] and A [T, r, columns] of a module: those of the files if ``raw``, else balanced ones."""
    rank = max(folder.modules[module].rank for folder in adapters.folders)
    pairs = [folder.factors(module) for folder in adapters.folders]
    if not raw:
        pairs = [balanced(b, a, rank) for b, a in pairs]
    return np.stack([b for b, _ in pairs]), np.stack([a for _, a in pairs])


@dataclass(frozen=True)
class _Compressed(PeftFolder):
    """An adapter with the factors that a rule makes of its balanced ones."""

    rule: ValueRule = dataclasses.field(kw_only=True)

    def factors(self, module: str) -> tuple[Floats, Floats]:
        b, a = balanced(*super().factors(module), self.modules[module].rank)
        return self.rule.compressed(b, a)


def compressed_adapters(rule: ValueRule, adapters: Adapters) -> Adapters:
    """The adapters as a rule that is ``alone`` leaves them."""
    change = partial(_Compressed, rule=rule)
    fields = [field.name for field in dataclasses.fields(PeftFolder)]
    found = [change(**{name: getattr(f, name) for name in fields}) for f in adapters.folders]
    return dataclasses.replace(adapters, folders=found)
