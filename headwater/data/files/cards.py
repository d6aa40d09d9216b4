"""What a data set's own README says of its files: :func:`listed_splits` reads the card of a Hub repository.

``configs`` in the YAML above the text names the files of each split, and of each configuration where there
are several. Names of files alone would not tell that ``a.jsonl`` is the train split and ``b.jsonl`` the test
split. Format: https://huggingface.co/docs/hub/datasets-manual-configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from headwater.errors import DataError

CARD = "README.md"
_MOST = 2**20
"""Characters of a card that are looked at."""


def listed_splits(folder: Path) -> dict[str, list[Path]] | None:
    """The paths of each split, as the card of ``folder`` lists them; None where it lists none.

    Raises:
        DataError: several configurations, or a list that names no files here.
    """
    configs = _configs(folder / CARD)
    if configs is None:
        return None
    if len(configs) > 1:
        names = [str(config.get("config_name", "default")) for config in configs]
        shown = ", ".join(f"{name!r:.40}" for name in names[:6]) + (", …" if len(names) > 6 else "")
        raise DataError(
            str(folder),
            expected="the data of one configuration",
            got=f"a data set with {len(names)} of them, as its {CARD} says: {shown}",
            hint="Give the folder or the file of one of them as the path.",
        )
    patterns = _patterns(configs[0], folder / CARD)
    return {split: _matching(folder, split, of) for split, of in patterns.items()}


def _configs(card: Path) -> list[Mapping[str, object]] | None:
    """``configs`` of a card that has some with files."""
    if not card.is_file():
        return None
    with card.open(encoding="utf-8-sig", errors="replace") as stream:
        head = stream.read(_MOST)
    if head.partition("\n")[0].strip() != "---":
        return None
    import yaml  # only where there is a card

    try:
        found = yaml.safe_load(head.split("\n---", 1)[0])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None  # a README of other make: it lists nothing
    configs = found.get("configs") if isinstance(found, dict) else None
    if not isinstance(configs, list):
        return None
    return [c for c in configs if isinstance(c, dict) and ("data_files" in c or "data_dir" in c)] or None


def _patterns(config: Mapping[str, object], card: Path) -> dict[str, list[str]]:
    """Patterns of file names by split; files without one are the train split's, as on the Hub."""
    within = config.get("data_dir", "")
    files = config.get("data_files", "**/*")
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else [files]:
        split, paths = (
            (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        )
        for path in paths if isinstance(paths, list) else [paths]:
            if not isinstance(split, str) or not isinstance(path, str) or not isinstance(within, str):
                raise DataError(
                    str(card), expected="configs whose data_files name a split and its paths",
                    got=f"{entry!r:.60}",
                )  # fmt: skip
            pattern = PurePosixPath(within, path)
            if pattern.is_absolute() or ".." in pattern.parts or "://" in path:
                raise DataError(
                    str(card), expected="data_files below its own folder", got=f"{path!r:.60}",
                    hint="Get these files, and give their folder as the path.",
                )  # fmt: skip
            found.setdefault(split, []).append(str(pattern))
    return found


def _matching(folder: Path, split: str, patterns: Iterable[str]) -> list[Path]:
    found = dict.fromkeys(p for of in patterns for p in sorted(folder.glob(of)) if p.is_file())
    if not found:
        raise DataError(
            str(folder),
            expected=f"files of the split {split!r:.40} at {', '.join(patterns)}, as its {CARD} says",
            got="none",
            hint="Get the whole data set.",
        )
    return list(found)
