"""Joined: the runs a device has been told of, on disk, so that a restarted agent knows them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from headwater.config.federation import Federation
from headwater.config.load import LoadedFederation
from headwater.config.model import VectorModel
from headwater.config.plugins import PluginMissing, PluginNotAllowed
from headwater.config.privacy import ExamplePrivacy
from headwater.errors import DecodeError, HeadwaterError, StorageError
from headwater.files import write_atomically
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import ProfileRequest

KEPT_RUNS = 3
"""Runs whose folders stay: the one that was last worked for, and the two before it."""
LEDGERS = "privacy"
"""In the agent's state: a folder for each run that trains with noise."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE, _START = "federation.json", "start.safetensors"


@dataclass(frozen=True)
class KnownRun:
    """One run as its server described it.

    Args:
        run: its id.
        federation: the server's settings, as JSON.
        model_sha256: of the base model.
        folder: what the device keeps for this run: this file and the residuals.
        examples: the owner's training examples in it; None before the first profile.
    """

    run: str
    federation: str
    model_sha256: str
    folder: Path
    examples: int | None = None

    @property
    def settings(self) -> Federation:
        """The server's settings.

        Raises:
            DecodeError: they are not a federation that this version knows.
            PluginMissing: a package that they name is not installed here, or in another version.
            PluginNotAllowed: the owner does not allow it.
        """
        try:
            return Federation.model_validate_json(self.federation)
        except PluginMissing as error:
            raise coded(error, FailureCode.PLUGIN_MISSING, error.number) from None
        except PluginNotAllowed as error:
            raise coded(error, FailureCode.POLICY_PLUGINS, error.number) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            unknown = DecodeError(
                f"run {self.run}: federation settings",
                expected="those of this version of headwater",
                got=f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300],
                hint="Server and device must run the same minor version.",
            )
            raise coded(unknown, FailureCode.ANOTHER_VERSION) from None

    @property
    def ledgers(self) -> Path:
        """Where it is written what its trainings told of the rows: it stays when the run's folder goes."""
        return self.folder.parent.parent / LEDGERS / self.run

    @property
    def bits(self) -> str:
        """The mode of the process that is to work for it."""
        try:
            return str(json.loads(self.federation)["federation"].get("bits", "machine"))
        except (ValueError, KeyError, TypeError, AttributeError):  # whoever reads the settings says so
            return "machine"

    def loaded(self, model: Path | None) -> LoadedFederation:
        """The federation as this device runs it: its own base model in ``model``, no path of the server's."""
        settings = self.settings
        if not isinstance(settings.model, VectorModel):
            local = {"path": str(model), "revision": None, "sha256": self.model_sha256}
            settings = settings.model_copy(update={"model": settings.model.model_copy(update=local)})
        if settings.adapter is not None and settings.adapter.start is not None:
            sent = {"start": str(self.folder / _START)}
            settings = settings.model_copy(update={"adapter": settings.adapter.model_copy(update=sent)})
        return LoadedFederation(settings, self.folder)

    def sha256(self) -> str:
        """SHA-256 (hex) of what the server said."""
        return hashlib.sha256(f"{self.run}\n{self.model_sha256}\n{self.federation}".encode()).hexdigest()


class KnownRuns:
    """Folders of runs below ``folder``; only the last :data:`KEPT_RUNS` stay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def join(self, request: ProfileRequest) -> KnownRun:
        """Remember the run of this request, and forget the oldest runs.

        Raises:
            DecodeError: no federation in it, one that is not understood, or a run id that names no folder;
                or other noise of rows, or less in shares, than the run was joined with.
            StorageError: it could not be written.
        """
        if not request.federation or not request.model_sha256:
            raise DecodeError(
                f"run {request.run}", expected="the federation's settings", got="a request without them"
            )
        folder = self._path(request.run)
        old = self.get(request.run)
        joined = KnownRun(request.run, request.federation, request.model_sha256, folder)
        _require_same_noise(old, joined)  # refused here also if it is not understood
        if old is not None and old.sha256() == joined.sha256():
            joined = old
        else:
            self._write(joined)
        if request.start:
            _keep(folder / _START, request.start)
        self.use(joined)
        return joined

    def get(self, run: str) -> KnownRun | None:
        """The run, if this device was told of it.

        Raises:
            DecodeError: a run id that names no folder.
            StorageError: its file is damaged.
        """
        path = self._path(run) / _FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return KnownRun(
                run, content["federation"], content["model_sha256"], path.parent, content["examples"]
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"joined run {path}",
                expected="what the server said of the run",
                got=str(error)[:100],
                hint="Delete the file: the server tells it again.",
            ) from None

    def learn(self, joined: KnownRun, examples: int) -> KnownRun:
        """Remember how many training examples the owner has in this run."""
        if joined.examples != examples:
            joined = replace(joined, examples=examples)
            self._write(joined)
        return joined

    def use(self, joined: KnownRun) -> None:
        """This run is worked for now: it is the last to be forgotten."""
        with contextlib.suppress(OSError):  # the order of forgetting is no reason to refuse work
            # a device's clock may be behind what it was when the others were used
            now = max(time.time_ns(), 1 + max((ns for ns, _ in self._used()), default=0))
            os.utime(joined.folder / _FILE, ns=(now, now))
        for run in self.runs()[KEPT_RUNS:]:
            shutil.rmtree(self._folder / run, ignore_errors=True)

    def runs(self) -> list[str]:
        """Ids of the runs, the last used first."""
        return [run for _, run in sorted(self._used(), reverse=True)]

    def _used(self) -> list[tuple[int, str]]:
        """When each run was last used, in nanoseconds, and its id."""
        times: list[tuple[int, str]] = []
        for path in self._folder.glob(f"*/{_FILE}"):
            with contextlib.suppress(OSError):
                times.append((path.stat().st_mtime_ns, path.parent.name))
        return times

    def _path(self, run: str) -> Path:
        if not _RUN.fullmatch(run):
            raise DecodeError("run id", expected="letters, digits, '.', '_' and '-'", got=repr(run[:80]))
        return self._folder / run

    def _write(self, joined: KnownRun) -> None:
        content = {
            "federation": joined.federation,
            "model_sha256": joined.model_sha256,
            "examples": joined.examples,
        }
        write_atomically(joined.folder / _FILE, json.dumps(content).encode())


def _keep(path: Path, content: bytes) -> None:
    """Write what the server sent; what is there already is not written again."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    write_atomically(path, content)


_FREE = {"epsilon", "mask_wait_s"}
"""Of ``[privacy]``: what decides over no noise."""


def _require_same_noise(before: KnownRun | None, joined: KnownRun) -> None:
    """A server that may be lying gets no training without the noise that the run was joined with.

    The ledger stays when the run's folder goes, and tells that there was some.

    Raises:
        DecodeError: a federation that is not understood, or one with another ``[training.privacy]``, or with
            other noise in shares.
    """
    now, promised = _noise(joined.settings), set[ExamplePrivacy | None]()
    weaker = False
    if before is not None:
        with contextlib.suppress(HeadwaterError):  # an older version's, which promised nothing
            promised = _noise(before.settings)
            weaker = _weaker_shares(before.settings, joined.settings)
    if weaker:
        error = DecodeError(
            f"run {joined.run}",
            expected="the noise in shares that it was joined with",
            got="another, none, or for sums of fewer clients",
            hint="Other noise needs a new run, of which owners are told.",
        )
        raise coded(error, FailureCode.BAD_REQUEST)
    broken = bool(promised - {None}) and now != promised
    if broken or (None in now and joined.ledgers.is_dir()):
        error = DecodeError(
            f"run {joined.run}",
            expected="the training.privacy that it was joined with",
            got="another, or none",
            hint="Other noise needs a new run, of which owners are told.",
        )
        raise coded(error, FailureCode.BAD_REQUEST)


def _weaker_shares(before: Federation, now: Federation) -> bool:
    """Whether a share of noise that was drawn by the one would be too little in a sum by the other."""
    return before.privacy.shares and (
        before.privacy.model_dump(exclude=_FREE) != now.privacy.model_dump(exclude=_FREE)
        or now.cohort.min_clients < before.cohort.min_clients
    )


def _noise(settings: Federation) -> set[ExamplePrivacy | None]:
    """Of the federation's trainings."""
    return {training.example_privacy() for training in settings.trainings.values()}
