"""Recipe: how adapters are merged: the rule, the space of LoRA weights, and what is done with the result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headwater.errors import ConfigError
from headwater.merging.offline.low_rank import Truncation
from headwater.merging.offline.rule import (
    DataRule,
    FactorRule,
    LinearRule,
    Rule,
    Space,
    StackRule,
    ValueRule,
)


@dataclass(frozen=True)
class Recipe:
    """How adapters are merged.

    Args:
        rule: which, with its settings.
        space: of LoRA weights; None for the rule's best: ``product`` for linear rules, else ``core``.
        truncation: of LoRA weights.
        scale: what the merged change is multiplied with (λ).
        seed: of rules that draw.
        task: of a rule that gives back: whose own it gives, from 1 in the order of names; 0 for the merge.
    """

    rule: Rule
    space: Space | None = None
    truncation: Truncation = field(default_factory=Truncation)
    scale: float = 1.0
    seed: int = 0
    task: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rule, DataRule):
            self._require_space_of(self.rule)
        linear = isinstance(self.rule, LinearRule | DataRule)
        if self.space == "stack" and not linear:
            raise ConfigError(
                f"--space {self.space}",
                expected="a linear rule",
                got=self.rule.name,
                hint="Use --space core.",
            )
        if self.space == "product" and not linear:
            raise ConfigError(
                "--space product",
                expected="a linear rule; others need coordinates of the product, which --space core has",
                got=self.rule.name,
            )
        if self.space == "factors" and not _merges_factors(self.rule):
            raise ConfigError(
                "--space factors",
                expected="a rule that looks at values: this one looks at the product of the factors",
                got=self.rule.name,
                hint="Leave out --space.",
            )
        if self.space in ("stack", "factors") and self.truncation != Truncation():
            raise ConfigError(
                "--rank and --energy",
                expected="--space product or core",
                got=f"--space {self.space}",
                hint="Its rank is that of the adapters.",
            )
        if self.task and not self.rule.gives_back:
            raise ConfigError(
                f"--task {self.task}",
                expected="a rule that gives an adapter back",
                got=f"--rule {self.rule.name}",
                hint="headwater merge --rules says which ones do.",
            )
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ConfigError("--scale", expected="a number that is not zero", got=repr(self.scale))

    def _require_space_of(self, rule: DataRule) -> None:
        if self.space is not None and self.space not in rule.spaces:
            raise ConfigError(
                f"--space {self.space}",
                expected=f"--space {' or '.join(rule.spaces)} with --rule {rule.name}",
                got="another",
                hint="Leave out --space.",
            )

    @property
    def chosen(self) -> Space:
        """The space."""
        if self.space is not None:
            return self.space
        if isinstance(self.rule, DataRule):
            return self.rule.spaces[0]
        return "product" if isinstance(self.rule, LinearRule) else "core"


def _merges_factors(rule: Rule) -> bool:
    """Whether a rule means something for A and B each by itself."""
    if isinstance(rule, LinearRule):
        return not rule.per_weight
    return isinstance(rule, StackRule | FactorRule) or (isinstance(rule, ValueRule) and rule.axes == "core")
