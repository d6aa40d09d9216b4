"""A class that does something is made of few things: a constructor has at most seven parameters.

Above that nobody sees which of them belong together. A frozen record does say it, and may have more: a frozen
dataclass whose methods, if any, take no arguments. Of other dataclasses only the fields without a default
count: the rest is state that begins by itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "headwater"
MOST = 7


def constructors(source: str) -> Iterator[tuple[str, int]]:
    """Each class that has behaviour, and how many arguments make one."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
        init = next((m for m in methods if m.name == "__init__"), None)
        decorators = [ast.unparse(d) for d in node.decorator_list]
        if init is not None:
            yield node.name, _parameters(init)
        elif any(d.startswith("dataclass") for d in decorators) and (
            not any("frozen=True" in d for d in decorators) or any(map(_takes_arguments, methods))
        ):
            yield node.name, sum(map(_is_required, node.body))


def _parameters(method: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Besides ``self``."""
    return len(method.args.posonlyargs + method.args.args + method.args.kwonlyargs) - 1


def _takes_arguments(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    special = method.name.startswith("__") or method.decorator_list  # a property, another way to make one
    return not special and _parameters(method) > 0


def _is_required(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.AnnAssign)
        and node.value is None
        and not ast.unparse(node.annotation).startswith("ClassVar")
    )


def test_a_constructor_has_at_most_seven_parameters():
    found = [
        f"{path.relative_to(PACKAGE)}: {name} takes {count}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, count in constructors(path.read_text(encoding="utf-8"))
        if count > MOST
    ]
    assert not found, f"put what belongs together into a frozen record: {found}"


FIELDS = "".join(f"    f{i}: int\n" for i in range(8))


@pytest.mark.parametrize(
    ("source", "counts"),
    [
        ("class A:\n    def __init__(self, a, b, *, c, d, e, f, g, h=1): ...", [("A", 8)]),
        (f"@dataclass(frozen=True)\nclass A:\n{FIELDS}    def go(self, to): ...", [("A", 8)]),
        (f"@dataclass(frozen=True)\nclass A:\n{FIELDS}    def total(self): ...", []),
        (f"@dataclass(frozen=True)\nclass A:\n{FIELDS}    @staticmethod\n    def read(path): ...", []),
        (f"@dataclass\nclass A:\n{FIELDS}", [("A", 8)]),
        (f"@dataclass\nclass A:\n{FIELDS}    state: int = 0\n    kind: ClassVar[str]\n", [("A", 8)]),
        (f"class A(Model):\n{FIELDS}", []),
    ],
)
def test_the_count_would_notice(source, counts):
    assert list(constructors(source)) == counts
