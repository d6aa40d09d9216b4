"""No file of the package imports itself through others, wherever in a file an import stands."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports: at its top, in a function, or for type checkers."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return {other for other in found if other in known and other != name}


def circle(package: Path) -> list[str]:
    """The modules of one circle; empty if there is none."""
    known = modules(package)
    try:
        TopologicalSorter({name: imports(name, path, known) for name, path in known.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_through_others():
    assert not circle(ROOT / "headwater")


@pytest.mark.parametrize(
    "line",
    ["from toy.b import x", "import toy.b", "from toy import b", "from . import b", "from .b import x"],
)
def test_a_circle_is_seen(tmp_path, line):
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(f"def later():\n    {line}\n")
    (package / "b.py").write_text("import toy.a\nx = 1\n")
    assert set(circle(package)) == {"toy.a", "toy.b"}
