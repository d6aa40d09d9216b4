"""merge(): what ``headwater merge`` does, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from pydantic import ValidationError

from headwater.config.settings import in_words
from headwater.errors import ConfigError
from headwater.experts.expert_file import opener
from headwater.merging.offline.base_weights import base_weights
from headwater.merging.offline.folder import MergeReport, merge_folders
from headwater.merging.offline.low_rank import Truncation
from headwater.merging.offline.merge import Recipe, Space
from headwater.merging.offline.rule import Rule
from headwater.merging.offline.rules.table import RULES

AnyPath = str | PathLike[str]


def merge(
    folders: Sequence[AnyPath],
    out: AnyPath,
    *,
    rule: str = "mean",
    weights: Sequence[float] | None = None,
    space: Space | None = None,
    rank: int | None = None,
    energy: float = 1.0,
    scale: float = 1.0,
    seed: int = 0,
    base: AnyPath | None = None,
    origin: AnyPath | None = None,
    overwrite: bool = False,
    **settings: object,
) -> MergeReport:
    """Merge adapters that PEFT saved into one that PEFT loads, without their base model.

    Args:
        folders: of adapters, each with ``adapter_config.json`` and ``adapter_model.safetensors``, or files
            that ``headwater compress`` wrote.
        out: the folder of the result; it is whole or absent.
        rule: how; ``headwater merge --rules`` lists them.
        weights: a number for each; equal if None.
        space: of LoRA weights: ``product``, ``core``, ``stack`` or ``factors``; None for the rule's best.
        rank: the most that a merged LoRA weight has; None for as many as it needs.
        energy: of a weight's change that its rank must keep, in (0, 1].
        scale: what the merged change is multiplied with.
        seed: of rules that draw.
        base: the base's folder, to merge heads and other whole weights by what changed in them.
        origin: the adapter that such files were compressed against, if any.
        overwrite: whether ``out`` may be there.
        settings: of the rule, such as ``density``.

    Returns:
        What was done: ``ranks``, ``kept``, ``notes`` and more.

    Raises:
        ConfigError: settings that do not fit the rule or the adapters.
        ModelError: adapters that do not belong together.
        DecodeError: a file that is not what it should be.
        StorageError: a file that cannot be read or written.
    """
    return merge_folders(
        [Path(folder) for folder in folders],
        Path(out),
        Recipe(named_rule(rule, settings), space, Truncation(rank, energy), scale, seed),
        weights=weights,
        base=None if base is None else base_weights(Path(base)),
        open_adapter=opener(None if origin is None else Path(origin)),
        overwrite=overwrite,
    )


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
