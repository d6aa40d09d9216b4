"""measured(): what rows say of adapters, for a rule that goes by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from headwater.errors import ConfigError, ModelError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import DataRule
from headwater.merging.offline.rules.fisher import Fisher
from headwater.merging.offline.rules.mats import Mats
from headwater.merging.offline.rules.regmean import RegMean
from headwater.merging.offline.rules.searched import AdaMerging, Evolve, FrankWolfe, LoraHub
from headwater.tasks.batches import Example
from headwater.tasks.classification import Classification
from headwater.training.merging.evolve import search_evolve
from headwater.training.merging.fisher import measure_fisher
from headwater.training.merging.mats import measure_mats
from headwater.training.merging.network import RowsNetwork
from headwater.training.merging.regmean import measure_regmean
from headwater.training.merging.rows import rows_of_files
from headwater.training.merging.searches import search_adamerging, search_frank_wolfe, search_lorahub


def measured(
    adapters: Adapters,
    recipe: Recipe,
    data: Sequence[Path],
    base: str | None,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Measured:
    """What the merge of some adapters goes by.

    Args:
        adapters: that fit together and to the rule.
        recipe: with a :class:`DataRule`.
        data: files or folders of rows, at least one.
        base: where the base model is, if not where the adapters say.
        progress: is told what is being done.

    Raises:
        ConfigError: another number of files than the rule takes.
        ModelError: adapters or a base that a rule by rows cannot take.
        DataError: rows that cannot be used, all at once by file and row.
    """
    rule = recipe.rule
    assert isinstance(rule, DataRule)
    _require_files(rule, data, len(adapters))
    progress("loading the base model")
    network = RowsNetwork.open(adapters, base)
    if rule.classifies and not isinstance(network.task, Classification):
        raise ModelError(
            f"rule {rule.name}",
            expected="adapters of a classifier, whose answers have an entropy",
            got=f"{network.task.settings.kind}",
            hint="Use lorahub or fw.",
        )
    progress("reading rows")
    rows = rows_of_files(network.predictor, data, labelled=rule.labelled)
    if rule.files == "adapters":
        rows = _by_adapter(adapters, rows)
    elif rule.files == "heap":
        rows = [[example for file in rows for example in file]]
    if isinstance(rule, Evolve):
        names = [path.name for path in data]
        return search_evolve(network, rule, rows, names, seed=recipe.seed, progress=progress)
    return _measured(network, recipe, rows, progress)


def _measured(
    network: RowsNetwork,
    recipe: Recipe,
    rows: Sequence[Sequence[Example]],
    progress: Callable[[str], None],
) -> Measured:
    rule, seed = recipe.rule, recipe.seed
    if isinstance(rule, Fisher):
        return measure_fisher(network, rule, rows, seed=seed, progress=progress)
    if isinstance(rule, Mats):
        return measure_mats(network, rule, rows, seed=seed, progress=progress)
    if isinstance(rule, RegMean):
        whole = recipe.chosen == "product"
        return measure_regmean(network, rule, rows, whole=whole, seed=seed, progress=progress)
    (heap, *_) = rows
    if isinstance(rule, LoraHub):
        return search_lorahub(network, rule, heap, seed=seed, progress=progress)
    if isinstance(rule, FrankWolfe):
        return search_frank_wolfe(network, rule, heap, progress=progress)
    if isinstance(rule, AdaMerging):
        return search_adamerging(network, rule, heap, seed=seed, progress=progress)
    raise AssertionError(rule.name)


def _by_adapter(adapters: Adapters, rows: list[list[Example]]) -> list[list[Example]]:
    """The rows of each of ``adapters.folders``, which are not in the order in which they were named."""
    if len(rows) == 1:
        return rows * len(adapters)
    places = [next(i for i, named in enumerate(adapters.named) if named is f) for f in adapters.folders]
    return [rows[place] for place in places]


def _require_files(rule: DataRule, data: Sequence[Path], adapters: int) -> None:
    if rule.files == "adapters" and len(data) not in (1, adapters):
        raise ConfigError(
            "--data",
            expected=f"one file of rows, or one for each of {adapters} adapters in their order",
            got=f"{len(data)} files",
        )
