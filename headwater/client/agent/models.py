"""LocalModels: the owner's base models by hash. A federation asks for a hash, never for a path."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from headwater.adapters.weights import hash_base
from headwater.client.agent.problems import ADVICE
from headwater.errors import ModelError, StorageError
from headwater.files import write_atomically
from headwater.protocol.failures import FailureCode, coded

_REMEMBERED = 4
"""Hashes that a folder had before: one that is asked for is known to have changed."""


class LocalModels:
    """Base models in some folders.

    Args:
        folders: each a base model's folder, or a folder of such folders.
        allow: only these hashes; all if None.
        cache: file that keeps hashes by path, size and time of the files, so that each is read once.
    """

    def __init__(self, folders: Sequence[Path], allow: Sequence[str] | None, cache: Path) -> None:
        self._folders, self._allow, self._cache = folders, allow, cache
        self.hashed = 0

    def find(self, sha256: str) -> Path:
        """The folder of the base model with this hash.

        Raises:
            ModelError: the owner does not allow it, or it is not here.
        """
        if self._allow is not None and sha256 not in self._allow:
            refused = ModelError(
                f"policy models.allow: base model sha256 {sha256}",
                expected=f"one of the {len(self._allow)} that the owner allows",
                got="another",
                hint=ADVICE[FailureCode.POLICY_MODELS],
            )
            raise coded(refused, FailureCode.POLICY_MODELS)
        known = self._known()
        seen: dict[str, list[str]] = {}
        found: Path | None = None
        changed: Path | None = None
        for folder in self.candidates():
            stamp = _stamp(folder)
            entry = known.get(str(folder))
            if entry is None or entry[0] != stamp:
                before = [] if entry is None else entry[1:]
                self.hashed += 1
                try:
                    entry = [stamp, hash_base(folder)]
                except (ModelError, OSError):  # another folder may hold it; this one is no base model (now)
                    entry = [stamp, ""]
                entry += [old for old in before if old and old != entry[1]][:_REMEMBERED]
            seen[str(folder)] = entry
            if entry[1] == sha256 and found is None:
                found = folder
            elif sha256 in entry[2:]:
                changed = folder
        if seen != known:
            with contextlib.suppress(StorageError):  # a cache: without it, it is read again
                write_atomically(self._cache, json.dumps(seen).encode())
        if found is None and changed is not None:
            other = ModelError(
                f"base model sha256 {sha256}",
                expected=f"in {changed}, where it was",
                got="other files: they have changed since",
                hint=ADVICE[FailureCode.WEIGHTS_CHANGED],
            )
            raise coded(other, FailureCode.WEIGHTS_CHANGED)
        if found is None:
            missing = ModelError(
                f"base model sha256 {sha256}",
                expected="in one of the device's models.folders",
                got=f"{len(seen)} other folders of models there",
                hint=ADVICE[FailureCode.MODEL_MISSING],
            )
            raise coded(missing, FailureCode.MODEL_MISSING, len(seen))
        return found

    def _known(self) -> dict[str, list[str]]:
        try:
            content = json.loads(self._cache.read_text(encoding="utf-8"))
            return {str(path): [str(part) for part in entry] for path, entry in content.items() if entry[1:]}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def candidates(self) -> list[Path]:
        """The folders that look like base models."""
        found = []
        for folder in self._folders:
            inner = sorted(folder.iterdir()) if folder.is_dir() else []
            found += [f for f in (folder, *inner) if (f / "config.json").is_file()]
        return found


def _stamp(folder: Path) -> str:
    """Name, size and time of every file directly in ``folder``."""
    files = sorted(f for f in folder.iterdir() if f.is_file())
    return json.dumps([[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files])
