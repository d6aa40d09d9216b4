"""Packages as a stranger installs them: :func:`write_package` on a folder that Python looks at."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from headwater.config import plugins


def write_package(
    folder: Path, name: str, source: str, points: Mapping[str, Mapping[str, str]], version: str = "1.0"
) -> None:
    """A module ``NAME.py`` and the ``dist-info`` that pip would write for it.

    Args:
        folder: of installed packages.
        name: of the module; the distribution is called so with hyphens.
        source: of the module.
        points: for each group of entry points, by kind, ``module:name``.
        version: of the distribution.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    named = name.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {named}\nVersion: {version}\n")
    groups = [
        f"[headwater.{group}]\n" + "".join(f"{kind} = {path}\n" for kind, path in kinds.items())
        for group, kinds in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@contextlib.contextmanager
def installed_in(folder: Path) -> Iterator[None]:
    """This process has the packages in ``folder``, and forgets them afterwards."""
    before = set(sys.modules)
    plugins.allow_only(None)  # an agent or a daemon may have run in this process
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(folder) in str(
                sys.modules[name].__file__
            ):
                del sys.modules[name]
        plugins._FOUND.clear()
        plugins._looked_for.cache_clear()
        plugins.allow_only(None)
