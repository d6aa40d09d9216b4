"""VersionPins: the adapter versions whose values somebody asked to keep."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from headwater.errors import ConfigError, StorageError
from headwater.files import write_atomically


class VersionPins:
    """The numbers in ``pinned.json``.

    Args:
        path: the file; absent means that nothing is pinned.

    Attributes:
        versions: the pinned ones.

    Raises:
        StorageError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.versions = self._read()

    def add(self, version: int) -> None:
        """Pin a version; nothing changes if it is pinned already.

        Raises:
            StorageError: the file could not be written.
        """
        if version not in self.versions:
            self._write(self.versions | {version})

    def remove(self, version: int) -> None:
        """Pin a version no more.

        Raises:
            ConfigError: it is not pinned.
            StorageError: the file could not be written.
        """
        if version not in self.versions:
            raise ConfigError(
                f"adapter version {version}",
                expected="a version that an export or a rollback keeps: "
                f"{', '.join(map(str, sorted(self.versions))) or 'there is none'}",
                got="another version",
            )
        self._write(self.versions - {version})

    def forget_after(self, version: int) -> None:
        """Drop the pins of later versions: those are dropped too.

        Raises:
            StorageError: the file could not be written.
        """
        if any(pin > version for pin in self.versions):
            self._write({pin for pin in self.versions if pin <= version})

    def _read(self) -> frozenset[int]:
        try:
            return frozenset(int(version) for version in json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(
                f"{self._path}",
                expected="a JSON list of versions",
                got=f"a damaged file ({error})",
                hint="Restore it, or delete it and export again what must be kept.",
            ) from error

    def _write(self, versions: Collection[int]) -> None:
        write_atomically(self._path, json.dumps(sorted(versions)).encode() + b"\n")
        self.versions = frozenset(versions)
