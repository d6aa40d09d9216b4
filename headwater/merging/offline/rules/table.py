"""The table of merge rules: :data:`RULES`, by the name that ``--rule`` takes."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.merging.offline.rule import Rule
from headwater.merging.offline.rules.linear import Mean, TaskArithmetic
from headwater.merging.offline.rules.ties import Ties

_CLASSES: tuple[type[Rule], ...] = (Mean, TaskArithmetic, Ties)
RULES: Mapping[str, type[Rule]] = {rule.name: rule for rule in _CLASSES}
