"""merge(): what ``headwater merge`` does, from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from headwater.errors import ConfigError, DataError
from headwater.experts.expert_file import opener
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.base_weights import base_weights
from headwater.merging.offline.folder import MergeReport, merge_folders
from headwater.merging.offline.low_rank import Truncation
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import DataRule, Space
from headwater.merging.offline.rules.named import named_rule

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
    task: int = 0,
    base: AnyPath | None = None,
    data: AnyPath | Sequence[AnyPath] = (),
    origin: AnyPath | None = None,
    overwrite: bool = False,
    **settings: object,
) -> MergeReport:
    """Merge adapters that PEFT saved into one that PEFT loads. Only rules that look at rows load the base.

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
        task: of rules that give an adapter back (``rmm``, ``twin``), which one: from 1, in their order; 0 for
            the merge.
        base: the base's folder, to merge heads and other whole weights by what changed in them; for rules
            that look at rows also where the base model has moved.
        data: rows for rules that look at them: a file or several; one for each folder (``fisher``,
            ``regmean``) or objective (``evolve``).
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
        DataError: rows that cannot be used, all at once by file and row.
    """
    recipe = Recipe(named_rule(rule, settings), space, Truncation(rank, energy), scale, seed, task)
    files = [Path(file) for file in ([data] if isinstance(data, str | PathLike) else data)]
    return merge_folders(
        [Path(folder) for folder in folders],
        Path(out),
        recipe,
        weights=weights,
        base=None if base is None else base_weights(Path(base)),
        open_adapter=opener(None if origin is None else Path(origin)),
        measure=measure_by(recipe, files, base),
        overwrite=overwrite,
    )


def measure_by(
    recipe: Recipe,
    data: Sequence[Path],
    base: AnyPath | None,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Callable[[Adapters], Measured] | None:
    """What asks rows, for a rule that looks at them; it loads torch when it is called. None for other rules.

    Args:
        recipe: with the rule.
        data: files of rows.
        base: where the base model has moved.
        progress: is told what is being done.

    Raises:
        ConfigError: a rule that looks at rows and none, or one that does not and rows.
        DataError: a file that is not there.
    """
    rule = recipe.rule
    if not isinstance(rule, DataRule):
        if data:
            raise ConfigError(
                "--data",
                expected="a rule that looks at rows",
                got=f"--rule {rule.name}",
                hint="Leave out --data; headwater merge --rules says which rules take it.",
            )
        return None
    if not data:
        raise ConfigError(
            f"rule {rule.name}",
            expected="rows to go by: --data FILE",
            got="none",
            hint="headwater merge --rules says which rules need none.",
        )
    for path in data:
        if not path.exists():
            raise DataError(f"--data {path}", expected="a file or folder of rows", got="nothing there")

    def measure(adapters: Adapters) -> Measured:
        from headwater.training.merging.measure import measured  # it takes seconds: torch and transformers

        return measured(adapters, recipe, data, None if base is None else str(base), progress=progress)

    return measure
