"""Whether a rule fits the adapters: their number, their weights, and their ranks in the space ``factors``."""

from __future__ import annotations

import numpy as np

from headwater.errors import ConfigError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.rule import LinearRule, Rule


def require_fit(rule: Rule, adapters: Adapters) -> None:
    """Refuse a number of adapters, or weights, that a rule cannot take.

    Raises:
        ConfigError: it is one.
    """
    who, count, weights = f"rule {rule.name}", len(adapters), adapters.weights
    if count < rule.least:
        raise ConfigError(who, expected=f"at least {rule.least} adapters", got=f"{count}")
    if rule.most is not None and count > rule.most:
        raise ConfigError(who, expected=f"at most {rule.most} adapters", got=f"{count}")
    if not rule.weighted and (weights != weights[0]).any():
        raise ConfigError(
            who,
            expected="no weights, since the rule looks at none",
            got=np.array2string(weights, precision=3, threshold=8),
            hint="Leave out --weights.",
        )
    if not rule.negative and (weights < 0).any():
        raise ConfigError(
            who,
            expected="positive weights",
            got=f"{weights.min():g}",
            hint="Rule task_arithmetic takes an adapter out.",
        )


def require_factors(rule: Rule, adapters: Adapters) -> None:
    """Refuse what cannot be merged factor by factor.

    Raises:
        ConfigError: a rule that is a sum, or adapters of several ranks.
    """
    if isinstance(rule, LinearRule) and not rule.weighs:
        raise no_shares(rule)
    for module, part in adapters.first.modules.items():
        for folder in adapters.named[1:]:
            if folder.modules[module].rank != part.rank:
                raise ConfigError(
                    f"{folder.path}, module {module}",
                    expected=f"rank {part.rank}, as in {adapters.first.path}, for --space factors",
                    got=f"rank {folder.modules[module].rank}",
                    hint="Use --space product or core, which take any ranks.",
                )


def no_shares(rule: Rule) -> ConfigError:
    """The space ``factors`` needs coefficients that sum to one."""
    return ConfigError(
        "--space factors",
        expected="a rule whose coefficients are shares: two sums multiply to what no adapter has",
        got=rule.name,
        hint="Use --space product, which is exact.",
    )


def task_of(rule: Rule, adapters: Adapters, task: int) -> int | None:
    """Which of ``adapters.folders`` is to be given back; None for the merge.

    Args:
        rule: that gives back, if ``task`` is not 0.
        adapters: to choose from.
        task: from 1, in the order in which the adapters were named.

    Raises:
        ConfigError: there is no such adapter.
    """
    if not task:
        return None
    if not 1 <= task <= len(adapters):
        raise ConfigError(
            f"--task {task}",
            expected=f"a number from 1 to {len(adapters)}, in the order of the adapters",
            got=f"{task} with --rule {rule.name}",
        )
    return next(i for i, folder in enumerate(adapters.folders) if folder is adapters.named[task - 1])
