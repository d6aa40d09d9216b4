"""What a run reads on the server, found before it is queued: :func:`require_inputs`. No torch."""

from __future__ import annotations

from pathlib import Path

from headwater.adapters.weights import HUB_NAME
from headwater.bits import require
from headwater.config import LoadedFederation
from headwater.config.data import NoData
from headwater.config.model import VectorModel
from headwater.errors import ConfigError, DataError, ModelError

HUB_S = 5.0
"""How long the hub may take to say whether it has a model."""


def require_inputs(loaded: LoadedFederation, resume: str = "") -> tuple[str, ...]:
    """See that the base model and the test file are there; read none of them.

    Args:
        loaded: the federation.
        resume: the command that goes on with the run, where it is one that had begun.

    Returns:
        What could not be found out and may fail later, one sentence each.

    Raises:
        ModelError: there is no such base model, or adapter to start from.
        DataError: there is no such test file.
        ConfigError: the folder that relative paths start from is gone, clients are to share a process or
            to lie, or this server was started in another mode than ``federation.bits``.
    """
    settings = loaded.settings
    require(settings.federation.bits)
    if settings.simulation.cohort != 1:
        raise ConfigError(
            f"simulation.cohort {settings.simulation.cohort}",
            expected="1 on a server, whose clients are on devices of their own",
            got="clients trained as one batch",
            hint="Leave it out, or run the file with headwater simulate.",
        )
    if settings.simulation.attackers:
        raise ConfigError(
            "[[simulation.attackers]]",
            expected="no clients that are told to lie, on a server",
            got=f"{len(settings.simulation.attackers)} entries",
            hint="Leave them out, or run the file with headwater simulate.",
        )
    moved = f" If it lies elsewhere now: {resume} --folder PATH, where the file's relative paths start."
    hint = moved if resume else ""
    if not loaded.folder.is_dir():
        raise ConfigError(
            f"folder {loaded.folder}",
            expected="the folder from which the federation file's relative paths start",
            got="no folder",
            hint=hint.strip() or "Check --folder.",
        )
    if not isinstance(settings.data, NoData) and settings.data.test is not None:
        test = loaded.path(settings.data.test)
        if not test.exists():
            raise DataError(
                f"data.test {settings.data.test!r}",
                expected=f"the server's test file at {test}",
                got="nothing there",
                hint=f"Put it there, or take the key out.{hint}",
            )
    if (start := loaded.start()) is not None and not start.exists():
        assert settings.adapter is not None
        raise ModelError(
            f"adapter.start {settings.adapter.start!r}",
            expected=f"the adapter to start from at {start}",
            got="nothing there",
            hint=f"Put it there, or give its path.{hint}",
        )
    if isinstance(settings.model, VectorModel):
        return ()
    model = settings.model
    return _require_model(model.path, model.revision, loaded.path(model.path), hint)


def _require_model(name: str, revision: str | None, local: Path, hint: str) -> tuple[str, ...]:
    if local.is_dir():
        if (local / "config.json").is_file():
            return ()
        raise ModelError(
            f"model.path {name!r}",
            expected=f"a folder with config.json and the weights at {local}",
            got="a folder without config.json",
            hint=f"Give the folder that save_pretrained wrote.{hint}",
        )
    if local.exists() or not HUB_NAME.fullmatch(name):
        raise ModelError(
            f"model.path {name!r}",
            expected=f"the base model's folder at {local}",
            got="a file" if local.exists() else "nothing there",
            hint=f"Put the model there, or give the path of its folder.{hint}",
        )
    return _ask_hub(name, revision, local, hint)


def _ask_hub(name: str, revision: str | None, local: Path, hint: str) -> tuple[str, ...]:
    """Whether a hub name is in the cache, or the hub has it."""
    import httpx
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(name, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    else:
        return ()
    problem = "this server may not ask the hub (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if not problem:
        try:
            HfApi().model_info(name, revision=revision, timeout=HUB_S)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code < 500:
                problem = f"the hub answers {error.response.status_code} for that name"
        except (OSError, httpx.HTTPError):
            return (f"model.path {name!r} is not here and the hub did not answer: the run may fail to start",)
    if problem:
        raise ModelError(
            f"model.path {name!r}",
            expected=f"the base model's folder at {local}, or a model of that name on the hub",
            got=f"no such folder, and {problem}",
            hint=f"Put the model there, or give the path of its folder.{hint}",
        )
    return (f"model.path {name!r} is not on this server: it is fetched from the hub when the run starts",)
