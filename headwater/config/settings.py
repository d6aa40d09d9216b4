"""Settings: the base of every table of a settings file; and what is wrong with one, in words."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from headwater.errors import ConfigError

_SHAPES = {
    "dict_type": "a table", "model_attributes_type": "a table", "model_type": "a table",
    "list_type": "a list", "tuple_type": "a list",
}  # fmt: skip
"""What JSON calls an object and an array is a table and a list in TOML."""
_KINDS = {"String": "a text", "List": "a list", "Tuple": "a list", "Set": "a list", "Dictionary": "a table"}


class Settings(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def by_kind(union: Any) -> dict[str, Any]:  # noqa: ANN401 - Annotated unions have no type of their own
    """The settings class of every ``kind`` of an annotated union such as ``Training``."""
    alone = get_args(union)[0]  # which is no union where there is one kind
    classes = get_args(alone) or (alone,)
    return {kind: s for s in classes for kind in get_args(s.model_fields["kind"].annotation)}


def in_words(problem: Mapping[str, Any]) -> tuple[str, str]:
    """What one problem that pydantic found expected, and what it got.

    Args:
        problem: of ``ValidationError.errors()``: ``type``, ``msg``, ``input``.
    """
    message, got = str(problem["msg"]), problem.get("input")
    shown = "" if isinstance(got, Mapping) else repr(got)[:80]
    if problem["type"] == "value_error":
        message = message.removeprefix("Value error, ")
        return (message, shown) if shown else ("settings that fit together", message)
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        return f"{context['discriminator']} out of {context['expected_tags']}", repr(context["tag"])
    if (shape := _SHAPES.get(problem["type"])) is not None:
        return shape, shown
    if found := re.fullmatch(r"(\w+) should (be|have|match) (.*)", message, re.DOTALL):
        what, verb, rest = found.groups()
        if rest.startswith(("greater than", "less than", "a multiple of")):
            rest = f"a number {rest.removeprefix('a ')}"
        thing = _KINDS.get(what, "a value")
        return {"be": rest, "have": f"{thing} with {rest}", "match": f"{thing} that matches {rest}"}[
            verb
        ], shown
    return message[:1].lower() + message[1:], shown


def read_toml(path: Path, what: str, hint: str) -> tuple[dict[str, Any], bytes]:
    """The tables of a settings file, and its bytes.

    Args:
        path: the file.
        what: it is, for messages: ``agent`` of an agent file.
        hint: for whoever has none.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    who = f"{what} file {path}"
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8")), content
    except FileNotFoundError:
        raise ConfigError(who, expected="a file", got="nothing there", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(who, expected="readable UTF-8 text", got=str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(who, expected="valid TOML", got=str(error)) from None


def first_problem(error: ValidationError, who: str, hint: str = "") -> ConfigError:
    """The first problem that pydantic found in full, and the number of the others."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or "(file)"
    expected, got = in_words(first)
    if first["type"] == "extra_forbidden":
        expected, got = "no such key", repr(first["input"])[:80]
    elif first["type"] == "missing":
        expected, got = "this key", "nothing"
    if len(problems) > 1:
        hint = f"{hint} ({len(problems) - 1} more problem(s) in this file.)".strip()
    return ConfigError(f"{who}: {key}", expected=expected, got=got, hint=hint)
