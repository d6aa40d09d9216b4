"""What can be written where, from the parsers: :func:`levels`. Knows nothing of any shell."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwater.cli.verbs import VerbParser

_WORD = re.compile(r"[A-Za-z0-9][\w.+:-]*", re.ASCII)
"""What no shell reads as anything else: other words are not offered."""


@dataclass(frozen=True, slots=True)
class Value:
    """What follows an option, or stands alone: some words, or files, or neither of both: anything.

    Args:
        words: all that it can be; empty if it can be more.
        files: whether it names a file or a folder.
    """

    words: tuple[str, ...] = ()
    files: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Args:
        flags: its spellings.
        about: its help, on one line.
        value: what follows it; None if nothing does.
    """

    flags: tuple[str, ...]
    about: str
    value: Value | None


@dataclass(frozen=True, slots=True)
class Level:
    """What can follow a verb.

    Args:
        verb: the verb, as in ``server init``; empty for the command itself.
        verbs: further verbs, each with what it does.
        options: in the parser's order.
        alone: what stands without an option.
    """

    verb: str
    verbs: dict[str, str]
    options: tuple[Option, ...]
    alone: Value


def levels(parser: argparse.ArgumentParser, verb: str = "") -> Iterator[Level]:
    """The level of a parser, then those of its verbs; imports the modules of all."""
    if isinstance(parser, VerbParser):
        parser.declare()
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    options = [action for action in parser._actions if action.option_strings]
    alone = [a for a in parser._actions if not a.option_strings and a not in subs]
    about = {choice.dest: _line(choice.help) for sub in subs for choice in sub._choices_actions}
    yield Level(verb, about, tuple(map(_option, options)), _together([_value(action) for action in alone]))
    for sub in subs:
        for name, child in sub.choices.items():
            yield from levels(child, f"{verb} {name}".strip())


def _option(action: argparse.Action) -> Option:
    value = None if action.nargs == 0 else _value(action)
    return Option(tuple(action.option_strings), _line(action.help), value)


def _value(action: argparse.Action) -> Value:
    if action.choices is not None:
        return Value(tuple(text for text in map(str, action.choices) if _WORD.fullmatch(text)))
    return Value(files=action.type is Path)


def _together(values: Sequence[Value]) -> Value:
    words = dict.fromkeys(word for value in values for word in value.words)
    return Value(tuple(words), any(value.files for value in values))


def _line(text: str | None) -> str:
    """A help text as one line, with argparse's doubled percent signs as one."""
    return "" if text in (None, argparse.SUPPRESS) else " ".join(str(text).split()).replace("%%", "%")
