"""named_rule(): a rule of ``headwater merge`` by its name, with its settings."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from headwater.config.settings import in_words
from headwater.errors import ConfigError
from headwater.merging.offline.rule import Rule
from headwater.merging.offline.rules.table import RULES


def named_rule(name: str, settings: Mapping[str, object]) -> Rule:
    """The rule of a name with its settings.

    Raises:
        ConfigError: no such rule, or one without such a setting.
    """
    rule = RULES.get(name)
    if rule is None:
        raise ConfigError(
            f"--rule {name}",
            expected=f"one of {', '.join(RULES)}",
            got="another",
            hint="headwater merge --rules describes them.",
        )
    for setting in settings.keys() - rule.model_fields.keys():
        own = ", ".join(map(_option, rule.model_fields)) or "no setting"
        raise ConfigError(_option(setting), expected=f"{own} with --rule {rule.name}", got="this option")
    try:
        return rule(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        expected, got = in_words(problem)
        where = _option(".".join(str(part) for part in problem["loc"]))
        raise ConfigError(f"{where} of rule {rule.name}", expected=expected, got=got) from error


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"
