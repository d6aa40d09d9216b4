"""A run that goes on under other settings: :func:`change_run`, and the table of what may change.

A run keeps the id that it began with, so that its checkpoint and what its clients keep stay its own. Settings
that are read anew in every round may change; those that something kept was made by may not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from headwater.config.federation import Federation
from headwater.config.load import LoadedFederation, load_federation
from headwater.errors import ConfigError
from headwater.files import write_atomically
from headwater.server.storage.run_folder import RunFolder
from headwater.strategies.merge_transforms import pro_training

MAY_CHANGE: Mapping[str, str] = {
    "federation.name": "what the run is called",
    "federation.rounds": "how many there are",
    "training.learning_rate": "how clients train",
    "training.epochs": "how clients train",
    "training.max_steps": "how clients train",
    "cohort.clients_per_round": "who is asked",
    "cohort.target_clients": "who is asked",
    "cohort.min_clients": "who is asked",
    "cohort.deadline_s": "how long is waited",
    "cohort.retry_s": "how long is waited",
    "evaluation.deadline_s": "how long is waited",
    "evaluation.every": "what is measured",
    "evaluation.clients": "what is measured",
    "evaluation.clients_every": "what is measured",
    "evaluation.client_count": "what is measured",
    "evaluation.client_fraction": "what is measured",
    "evaluation.by": "what is measured",
    "evaluation.answers": "what is measured",
    "evaluation.max_answer_tokens": "what is measured",
    "evaluation.patience": "when it ends",
    "evaluation.trunk_cache_mb": "what memory it may take",
    "evaluation.min_client_examples": "what is told",
    "contribution": "what is measured",
    "baselines": "what it is compared with",
    "model.path": "where the same files lie",
    "data.path": "where the same files lie",
    "data.test": "where the same files lie",
}
"""The keys that may change, and what of the run they are; a table stands for all its keys."""
MAY_NOT_CHANGE: Mapping[str, str] = {
    "federation.seed": "every draw of the rounds so far came from it",
    "federation": "the bits of every training hang on it",
    "plugins": "the bits of every training hang on them",
    "model": "the adapter is a change of this base",
    "adapter": "the state is of this adapter",
    "data": "who has which rows, and how they are read, was settled by it",
    "training": "server and clients keep what this method is in the middle of",
    "methods": "server and clients keep what these methods are in the middle of",
    "assignment": "server and clients keep what these methods are in the middle of",
    "codec": "server and clients keep what this codec has not sent yet",
    "strategy": "the server keeps what this rule and its optimiser are in the middle of",
    "schedule": "open updates belong to it",
    "cohort": "the links measured so far belong to it",
    "privacy": "what was promised of earlier rounds would not hold for later ones",
    "evaluation": "the best round so far was found by it",
    "simulation": "the simulated clock and the clients' batches belong to it",
}
"""The other keys and tables, and why they may not."""
_PLACES = ("model.path", "data.path", "data.test", "federation.name")
"""What changes nothing of the adapter."""


def change_run(
    folder: RunFolder, loaded: LoadedFederation, overrides: Iterable[str]
) -> tuple[LoadedFederation, tuple[str, ...]]:
    """Set keys of a run that is to go on; folder and origin say so from now on.

    Args:
        folder: of the run.
        loaded: its federation, from :meth:`RunFolder.open`.
        overrides: ``table.key=value``, as :func:`load_federation` takes them.

    Returns:
        The federation, under the run's old id, and what is otherwise than in a run that had these settings
        from the start: one sentence each.

    Raises:
        ConfigError: a key that may not change, and why; or fewer rounds than are done.
    """
    file = folder.path / "federation.toml"
    changed = load_federation(file, overrides, folder=loaded.folder)
    before, after = _flat(loaded.settings), _flat(changed.settings)
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    for key in keys:
        _require_changeable(folder, key, before.get(key))
    done = folder.checkpoint_round() or 0
    if changed.settings.federation.rounds < done:
        raise ConfigError(
            f"run folder {folder.path}: federation.rounds", expected=f"at least {done}, which are done",
            got=str(changed.settings.federation.rounds),
        )  # fmt: skip
    changed = replace(changed, run=loaded.run_id(), start_file=loaded.start_file)
    if not keys:
        return changed, ()
    told = _not_as_from_the_start(loaded.settings, changed.settings, keys, done)
    with folder.locked():
        origin = json.loads((folder.path / "state" / "origin.json").read_text())
        entry = {
            "after_round": done,
            "from": {key: before.get(key) for key in keys},
            "to": {key: after.get(key) for key in keys},
            "told": list(told),
            "federation_sha256": changed.sha256(),
        }
        # the id first: with the new settings alone the run would be another one
        content = {**origin, "run": changed.run, "changes": [*folder.changes(loaded.sha256()), entry]}
        folder.write_json("state/origin.json", content)
        write_atomically(file, changed.to_toml().encode())
        if any(key.partition(".")[0] in ("federation", "training", "baselines") for key in keys):
            (folder.path / "state" / "baselines.json").unlink(missing_ok=True)  # they have as many passes
    return changed, told


def _require_changeable(folder: RunFolder, key: str, value: object) -> None:
    table = key.partition(".")[0]
    if key in MAY_CHANGE or table in MAY_CHANGE:
        return
    raise ConfigError(
        f"run folder {folder.path}: {key}",
        expected=f"{value!r}, with which it began: {MAY_NOT_CHANGE.get(key, MAY_NOT_CHANGE[table])}",
        got="another value",
        hint=f'Start a new run from its adapter: [adapter] start = "{folder.path}".',
    )


def _not_as_from_the_start(
    before: Federation, after: Federation, keys: Iterable[str], done: int
) -> tuple[str, ...]:
    """In what the run differs from one that had the new settings from the start."""
    if not done:
        return ()
    told, had, has = [], before.federation.rounds, after.federation.rounds
    if other := [
        k for k in keys if k not in ("federation.rounds", *_PLACES) and not k.startswith("baselines")
    ]:
        told.append(f"rounds 1 to {done} were run with the old {', '.join(other)}")
    if had != has:
        told += [
            f"{name} lets rates fall over all rounds: rounds 1 to {done} had the rates of a run of {had}"
            for name, training in after.trainings.items()
            if getattr(training, "final_learning_rate_fraction", 1.0) != 1.0
        ]
        if pro_training(after) is not None:
            told.append(f"kseed drew the seeds of rounds 1 to {done} as in a run of {had}")
        if done == had and not (before.sends(had) or before.codec.down.whole):
            told.append(f"round {had} took in what codec.down had kept back, as the last of {had}")
        every = before.evaluation.every
        if every and done == had and had % every:
            told.append(f"round {had} was evaluated as the last of {had}: it may be the best one")
    return tuple(told)


def _flat(settings: Federation) -> dict[str, Any]:
    """The settings by dotted key, as in a file: of tables in tables the whole inner one."""
    found: dict[str, Any] = {}
    for table, content in settings.model_dump(mode="json", exclude_none=True).items():
        if isinstance(content, dict):
            found |= {f"{table}.{key}": value for key, value in content.items()}
        else:
            found[table] = content
    return found
