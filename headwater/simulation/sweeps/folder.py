"""SweepFolder: where a sweep's run folders and its tables lie.

::

    points/           a run folder a point, named by its labels and the id of its settings
    sweep.toml        the sweep file
    table.csv         a line a combination
    points.csv        a line a point
    sweep.json        all of it
    sweep.svg         the picture
    report.html       picture and tables on one page
    state/            a lock
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headwater.config import load_federation
from headwater.errors import ConfigError, HeadwaterError
from headwater.files import is_temporary
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.sweeps.plan import Point, short_names

_MOST_NAME = 100


@dataclass(frozen=True)
class SweepFolder:
    """Paths of a sweep.

    Args:
        path: the folder.
    """

    path: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, which is made if it is absent.

        Raises:
            ConfigError: it holds something else than a sweep, or another process works in it.
            StorageError: it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(
                f"sweep folder {self.path}", expected="a folder", got="a file", hint="Use --out."
            )
        there = self.path.iterdir() if self.path.is_dir() else ()
        names = {p.name for p in there if not is_temporary(p.name)}
        if names - {"state"} and "sweep.toml" not in names:
            raise ConfigError(
                f"sweep folder {self.path}",
                expected="a new or empty folder, or one of a sweep",
                got="one with other files in it",
                hint="Choose another --out.",
            )
        with RunFolder(self.path).locked():
            yield

    def places(self, points: tuple[Point, ...]) -> tuple[dict[str, Path], int]:
        """By id, each point's run folder: the one that has its id, however named, or a new one's path.

        And how many run folders are of no point of this grid.
        """
        folder = self.path / "points"
        there = {p.name.rpartition("-")[2]: p for p in (folder.iterdir() if folder.is_dir() else ())}
        wanted = {p.id for p in points}
        # an earlier version knew fewer settings and named it otherwise; only it can go on with what it began
        for name in [name for name in there.keys() - wanted if _ended(there[name])]:
            with suppress(HeadwaterError):
                loaded = load_federation(there[name] / "federation.toml", folder=folder, trackers=False)
                there.setdefault(loaded.run_id()[:16], there.pop(name))
        found = {p.id: there.get(p.id) or folder / f"{_slug(p)}-{p.id}" for p in points}
        return found, len(there.keys() - found.keys())

    def require_inputs(self, folder: Path, now: Mapping[str, str | None]) -> None:
        """Refuse a point that is done, of another base model, other data or other traces than are there now.

        Args:
            folder: of its run.
            now: SHA-256 of the files of ``base``, ``data`` and ``devices``; None where they are not there.

        Raises:
            ConfigError: one of them has changed.
        """
        inputs = json.loads((folder / "state" / "origin.json").read_text()).get("inputs", {})
        for name, digest in now.items():
            if digest is not None and inputs.get(name, digest) != digest:
                raise ConfigError(
                    f"sweep folder {self.path}",
                    expected=f"the {name} that its points were run with, sha256 {inputs[name][:12]}",
                    got=digest[:12],
                    hint="Put it back as it was, or choose another --out.",
                )


def _ended(folder: Path) -> bool:
    """Whether the run in it came to its end."""
    try:
        return bool(json.loads((folder / "summary.json").read_text())["stopped"] != "stopped")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _slug(point: Point) -> str:
    names = short_names(list(point.labels))
    text = "_".join(f"{names[key]}={label}" for key, label in point.labels.items())
    return re.sub(r"[^\w.=+-]+", "-", text, flags=re.ASCII)[:_MOST_NAME].strip("-.") or "point"
