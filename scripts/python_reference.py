"""Write docs/reference/api.md from the docstrings of the public names. ``--check`` only compares."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import headwater

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"
HEAD = """# API

Every public name with its parameters, what it returns and raises, as its docstring says; [From
Python](python.md) says which to take. Written by `scripts/python_reference.py`.
"""
MODULES = ("headwater.hf", "headwater.flower_strategy")
"""Public modules beside the names of ``headwater`` itself."""
LISTS = ("Args", "Attributes", "Raises")
SECTIONS = (*LISTS, "Returns", "Yields")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in sorted(headwater.__all__, key=str.lower):
        thing = getattr(headwater, name)
        if not isinstance(thing, ModuleType):
            parts.extend(entry(f"headwater.{name}", thing))
    for place in MODULES:
        module = importlib.import_module(place)
        parts.append(f"## `{place}`\n\n{prose(first(module))}\n")
        for name in module.__all__:
            parts.extend(entry(f"{place}.{name}", getattr(module, name), level=3))
    return "\n".join(parts)


def entry(name: str, thing: object, level: int = 2) -> Iterator[str]:
    """A name's heading, call and docstring; of a class its public methods and properties, too."""
    yield f"{'#' * level} `{name}`\n"
    yield from described(name.rpartition(".")[2], thing)
    if not inspect.isclass(thing):
        return
    for member, value in vars(thing).items():
        if member.startswith("_") or not (inspect.getdoc(value) and is_member(value)):
            continue
        yield f"{'#' * (level + 1)} `{name.rpartition('.')[2]}.{member}`\n"
        yield from described(member, getattr(value, "__func__", value))


def is_member(value: object) -> bool:
    """Whether a class's attribute is a method or property of its own."""
    return isinstance(value, property | staticmethod | classmethod) or inspect.isfunction(value)


def described(name: str, thing: object) -> Iterator[str]:
    """The call, if it is one, and the docstring."""
    if callable(thing) and (call := signature(name, thing)):
        yield f"```python\n{call}\n```\n"
    yield prose(inspect.getdoc(thing) or "") + "\n"


def signature(name: str, thing: object) -> str:
    """``name(parameters) -> result`` on a line, or a line a parameter; "" of what tells none."""
    if inspect.isclass(thing) and hasattr(thing, "model_fields"):
        return ""  # the tables of the federation file, which has a page
    try:
        found = inspect.signature(thing)  # type: ignore[arg-type]  # callable: the caller asked
    except ValueError:
        return ""
    drop = () if inspect.isclass(thing) else ("self", "cls")
    found = found.replace(parameters=[p for p in found.parameters.values() if p.name not in drop])
    if inspect.isclass(thing):
        found = found.replace(return_annotation=inspect.Signature.empty)
    text = name + bare(str(found))
    if len(text) <= 100:
        return text
    lines, starred = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        lines.append(f"    {bare(str(parameter))},")
    end = text.rpartition(") -> ")[2] if ") -> " in text else ""
    return "\n".join([f"{name}(", *lines, f"){f' -> {end}' if end else ''}"])


def bare(text: str) -> str:
    """Annotations without their quotation marks, functions without their addresses."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", text)


def first(module: ModuleType) -> str:
    """A module's docstring."""
    return inspect.cleandoc(module.__doc__ or "")


def prose(text: str) -> str:
    """A Google docstring as Markdown: its sections are lists, its roles and double backticks plain code."""
    text = re.sub(r":\w+:`[~.]?([^`]+)`", r"`\1`", text).replace("``", "`").replace("::\n", ":\n")
    out: list[str] = []
    section = None
    for line in text.splitlines():
        if (head := re.fullmatch(rf"({'|'.join(SECTIONS)}):", line)) is not None:
            section = head[1]
            out += [f"**{section}**", ""]
        elif section in ("Args", "Attributes", "Raises") and (
            item := re.match(r" {4}(\*{0,2}[\w.]+): (.*)", line)
        ):
            out.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            out.append(f"  {line.strip()}" if section in ("Args", "Attributes", "Raises") else line[4:])
        else:
            section = section if not line.strip() else None
            out.append(line)
    return textwrap.dedent("\n".join(out)).strip()


def main() -> int:
    """Write the page, or with ``--check`` say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not what the docstrings say: run python scripts/python_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
