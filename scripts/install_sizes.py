"""Print what an installation takes on disk, by role: ``python scripts/install_sizes.py``.

Measured in the environment that runs it, which must have the extras: for each role the files of its
distributions and of all that they require, without bytecode; of headwater itself the folder of this checkout.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROLES = {
    "torch, transformers and peft alone": ("torch", "transformers", "peft"),
    "agent: `headwater`": ("headwater",),
    "organiser: `headwater[simulation]`": ("headwater[simulation]",),
    "researcher: `headwater[simulation,datasets,tensorboard,speed,ray]`": (
        "headwater[simulation,datasets,tensorboard,speed,ray]",
    ),
}
PACKAGE = Path(__file__).parents[1] / "headwater"
MB = 1e6


def closure(wanted: tuple[str, ...]) -> set[str]:
    """The names of all distributions that these requirements need, themselves included.

    Raises:
        PackageNotFoundError: one is not installed here.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    open_ = [Requirement(text) for text in wanted]
    while open_:
        requirement = open_.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            more = map(Requirement, metadata.requires(name) or [])
            open_ += [r for r in more if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def size(name: str) -> int:
    """Bytes of a distribution's files."""
    if name == "headwater":
        files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    else:
        files = [Path(str(path.locate())) for path in metadata.files(name) or []]
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc" and path.is_file())


def main() -> None:
    """Print the table, and the largest that an agent needs beyond the first row."""
    found = {role: closure(wanted) for role, wanted in ROLES.items()}
    base, agent, *_ = found.values()
    alone = sum(map(size, base))
    print("| role | packages | MB | of the first row |\n|---|---|---|---|")
    for role, names in found.items():
        total = sum(map(size, names))
        print(f"| {role} | {len(names)} | {total / MB:,.0f} | {total / alone:.2f} |")
    largest = sorted(((size(name), name) for name in agent - base), reverse=True)[:8]
    print("\nBeyond the first row an agent has, MB:", ", ".join(f"{n} {s / MB:.0f}" for s, n in largest))


if __name__ == "__main__":
    main()
