"""Write docs/reference/federation-file.md from the settings' classes. ``--check`` only compares.

The words that the classes do not have stand in ``federation_texts.py`` and ``federation_meanings.py``.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import annotated_types as at
from federation_meanings import MEANINGS
from federation_texts import HEAD, RULE_CLASSES, RULES, TABLES, TAIL, UNFIT
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headwater.config.devices import Constant
from headwater.config.strategy import DistanceStrategy, KeptStrategy, RuleStrategy, UnweightedStrategy

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "federation-file.md"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (about, classes) in TABLES.items():
        parts.append(f"## `[{name}]` {{ #{anchor(name)} }}\n\n{about}\n")
        parts.extend(table(classes))
        if name == "strategy":
            parts.append(RULES + "\n".join(map(rule_row, RULE_CLASSES)) + "\n")
    parts.append(TAIL.format(rules="\n".join(f"- {what} with {other}" for what, other in UNFIT)))
    return "\n".join(parts)


def rule_row(cls: type[BaseModel]) -> str:
    """A rule's kinds and its own settings with their defaults."""
    common = {*RuleStrategy.model_fields, *KeptStrategy.model_fields}
    own = [
        f"`{key}`" + ("" if info.default is None else f" {toml(info.default)}")
        for key, info in cls.model_fields.items()
        if key not in common
    ]
    alike = issubclass(cls, UnweightedStrategy) or get_args(cls.model_fields["weighting"].annotation) == (
        "equal",
    )
    mark = "¹" * alike + "²" * issubclass(cls, DistanceStrategy)
    return f"- {listed([cls])}{mark}" + (f": {', '.join(own)}" if own else "")


def anchor(name: str) -> str:
    """The table's anchor."""
    return name.replace(".", "-").strip("[]")


def table(classes: tuple[type[BaseModel], ...]) -> Iterator[str]:
    """The sections of one TOML table: the keys that several kinds have alike, then each kind with its own."""
    if len(classes) == 1:
        yield keys([row(classes[0], key) for key in classes[0].model_fields])
        return
    alike = shared(classes)
    groups: dict[tuple[type[BaseModel], ...], list[str]] = {}
    for (key, *_), owners in alike.items():
        groups.setdefault(tuple(owners), []).append(shared_row(key, owners))
    for of, rows in groups.items():
        yield f"{said(of, classes)}:\n\n{keys(rows)}"
    for cls in classes:
        own = [k for k in cls.model_fields if k != "kind" and cls not in alike.get(identity(cls, k), ())]
        yield f"### {listed([cls])}\n\n{doc(cls)}\n\n{keys([row(cls, k) for k in own])}".rstrip() + "\n"


def shared(
    classes: tuple[type[BaseModel], ...],
) -> dict[tuple[str, str, str], list[type[BaseModel]]]:
    """Keys that have the same type and meaning in two kinds or more, with these kinds."""
    owners: dict[tuple[str, str, str], list[type[BaseModel]]] = {}
    for cls in classes:
        for key in cls.model_fields:
            if key != "kind":
                owners.setdefault(identity(cls, key), []).append(cls)
    return {known: having for known, having in owners.items() if len(having) > 1}


def identity(cls: type[BaseModel], key: str) -> tuple[str, str, str]:
    """What makes two kinds' keys one entry: name, type and meaning. Defaults may differ."""
    info = cls.model_fields[key]
    return key, kind_of(info.annotation) + bounds_of(info.metadata), meaning(cls, key)


def said(owners: tuple[type[BaseModel], ...], classes: tuple[type[BaseModel], ...]) -> str:
    """Which kinds a group of keys belongs to, in the fewest words."""
    others = [cls for cls in classes if cls not in owners]
    if not others:
        return "Every kind"
    if len(others) < len(owners):
        return f"All but {listed(others)}"
    return listed(owners)


def listed(classes: Iterable[type[BaseModel]]) -> str:
    """The kinds' names as code, with commas."""
    return ", ".join(f"`{kind}`" for cls in classes for kind in kind_names(cls))


def shared_row(key: str, owners: list[type[BaseModel]]) -> str:
    """The entry of a key of several kinds: its commonest default, then those of the others by kind."""
    infos = [cls.model_fields[key] for cls in owners]
    defaults = [default(info) for info in infos]
    most = max(defaults, key=defaults.count)
    others: dict[str, list[type[BaseModel]]] = {}
    for cls, text in zip(owners, defaults, strict=True):
        if text != most:
            others.setdefault(text, []).append(cls)
    exceptions = [f"{listed(having)}: {text}" for text, having in others.items()]
    return entry(key, infos[defaults.index(most)], meaning(owners[0], key), exceptions)


def kind_names(cls: type[BaseModel]) -> list[str]:
    """What the file may say for this class."""
    return [str(kind) for kind in get_args(cls.model_fields["kind"].annotation)]


def doc(cls: type[BaseModel]) -> str:
    """The class's docstring as Markdown on one line."""
    return " ".join((cls.__doc__ or "").replace("``", "`").split())


def keys(rows: list[str]) -> str:
    """A Markdown list of settings."""
    return "\n".join(rows) + "\n" if rows else ""


def row(cls: type[BaseModel], key: str) -> str:
    """One key of one kind."""
    return entry(key, cls.model_fields[key], meaning(cls, key), [])


def entry(key: str, info: FieldInfo, text: str, exceptions: list[str]) -> str:
    """``key`` = default (what else is allowed): meaning. The type is told where no default shows it."""
    kind, bounds = kind_of(info.annotation), bounds_of(info.metadata)
    shown = default(info)
    if get_origin(alone(info.annotation)) is Literal:
        others = [choice for choice in choices(info.annotation) if choice != shown]
        allowed = ["or " + ", ".join(others)] if others and shown else others
    else:
        allowed = [" ".join(filter(None, ([] if shown else [kind]) + [bounds]))]
    if info.is_required():
        allowed.append("required")
    known = ", ".join(filter(None, allowed))
    inside = "; ".join(filter(None, [known, *exceptions]))
    known = f"- `{key}`" + (f" = {shown}" if shown else "") + (f" ({inside})" if inside else "")
    return f"{known}: {text}" if text else known


def meaning(cls: type[BaseModel], key: str) -> str:
    """What a key means: from ``MEANINGS``, or else its own description."""
    found = [MEANINGS.get(c, {}).get(key) for c in cls.__mro__ if issubclass(c, BaseModel)]
    text = next((m for m in found if m is not None), cls.model_fields[key].description)
    if key == "kind":
        text = text or "which codec"
    if text is None:
        raise SystemExit(f"{cls.__name__}.{key} has no meaning: add a description, or a line in MEANINGS")
    return text


def default(info: FieldInfo) -> str:
    """A default as code; empty where there is none."""
    return "" if info.is_required() or info.default is None else f"`{toml(info.default)}`"


def toml(value: object) -> str:
    """A default as it stands in a file."""
    if isinstance(value, Constant):
        return toml(value.value)
    if isinstance(value, BaseModel):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value if v is not None) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:.0e}" if value == 1e9 else str(value)


def alone(annotation: object) -> object:
    """The type without ``None``."""
    union = get_origin(annotation) in (types.UnionType, typing.Union)
    inner = [a for a in get_args(annotation) if a is not type(None)] if union else [annotation]
    return inner[0] if len(inner) == 1 else None


def choices(annotation: object) -> list[str]:
    """What a literal may be, as code."""
    return [f'`"{value}"`' for value in get_args(alone(annotation))]


def kind_of(annotation: object) -> str:
    """The type in a word or two."""
    base = alone(annotation)
    if get_origin(base) is tuple:
        lists: dict[object, str] = {str: "list of strings", int: "list of integers", float: "list of numbers"}
        return lists.get(get_args(base)[0], "list of tables")
    if get_origin(base) is Literal:
        return " or ".join(choices(annotation))
    if "Constant" in str(annotation):
        return "number"
    names: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(base, "table")


def bounds_of(metadata: list[object]) -> str:
    """The bounds of a value."""
    least = next((m.ge for m in metadata if isinstance(m, at.Ge)), None)
    most = next((m.le for m in metadata if isinstance(m, at.Le)), None)
    if least is not None and most is not None:
        return f"{exact(least)}–{exact(most)}"
    return " ".join(b for b in (bound(m) for m in metadata) if b)


def bound(meta: object) -> str:
    """One constraint in words."""
    if isinstance(meta, at.Ge):
        return f"≥{exact(meta.ge)}"
    if isinstance(meta, at.Gt):
        return f">{exact(meta.gt)}"
    if isinstance(meta, at.Le):
        return f"≤{exact(meta.le)}"
    if isinstance(meta, at.Lt):
        return f"<{exact(meta.lt)}"
    if isinstance(meta, at.MinLen):
        return f"of ≥{meta.min_length}" if meta.min_length > 1 else ""
    if isinstance(meta, at.MaxLen):
        return f"≤{meta.max_length} long"
    pattern = getattr(meta, "pattern", None)
    return "64 hex digits" if pattern == "^[0-9a-f]{64}$" else str(pattern or "")


def exact(value: object) -> str:
    """A bound; powers of two as such."""
    if isinstance(value, int) and value > 2**15 and value & (value - 1) == 0:
        return "2" + str(value.bit_length() - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is not current")
    text = re.sub(r"\n{3,}", "\n\n", page()).rstrip() + "\n"
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is not current: run python scripts/federation_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
