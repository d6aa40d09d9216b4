"""A script for each shell, from the levels: :data:`SHELLS`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from headwater.cli.completion.levels import Level, Option, Value


def bash(levels: Sequence[Level]) -> str:
    """To be sourced, or in a folder of bash-completion."""
    lines = [
        "# headwater completion bash; source it, or write it to",
        "# ~/.local/share/bash-completion/completions/headwater",
        "_headwater() {",
        "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
        "    local verb= word words= options= files= IFS=$' \\t\\n'",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '        case "$verb $word" in',
        *_steps(levels, "            "),
        "        esac",
        "    done",
        '    case "$verb/$before" in',
    ]
    for level in levels:
        lines += [
            f"        {_places(level, option)}) {_bash(option.value)} ;;"
            for option in level.options
            if option.value is not None
        ]
        own = [flag for option in level.options for flag in option.flags]
        alone = Value((*level.verbs, *level.alone.words), level.alone.files)
        lines.append(f"        {shlex.quote(f'{level.verb}/')}*) {_bash(alone)} options={_words(own)} ;;")
    lines += [
        "    esac",
        '    [[ $current == -* || -z "$words$files" ]] && words="$words $options"',
        "    IFS=$'\\n'",
        '    COMPREPLY=($(compgen -W "${words// /$IFS}" -- "$current"))',
        '    [[ $files ]] && COMPREPLY+=($(compgen -f -- "$current"))',
        "    return 0",
        "}",
        "complete -o filenames -F _headwater headwater",
    ]
    return "\n".join(lines) + "\n"


def zsh(levels: Sequence[Level]) -> str:
    """To be sourced after ``compinit``, or as ``_headwater`` in a folder of ``fpath``."""
    lines = [
        "#compdef headwater",
        "# headwater completion zsh; source it after compinit, or write it as _headwater to one of fpath",
        "_headwater() {",
        "    local verb= word before=${words[CURRENT-1]} current=${words[CURRENT]}",
        "    local -a about",
        '    for word in "${(@)words[2,CURRENT-1]}"; do',
        '        case "$verb $word" in',
        *_steps(levels, "            "),
        "        esac",
        "    done",
        '    case "$verb/$before" in',
    ]
    for level in levels:
        lines += [
            f"        {_places(level, option)}) {_zsh(option.value)} ;;"
            for option in level.options
            if option.value is not None
        ]
        told = [f"{flag}:{option.about}" for option in level.options for flag in option.flags]
        verbs = [f"{name}:{about}" for name, about in level.verbs.items()]
        lines += [
            f"        {shlex.quote(f'{level.verb}/')}*)",
            "            if [[ $current == -* ]]; then",
            f"                about=({' '.join(map(shlex.quote, told))})",
            "                _describe option about",
            "            else",
            *([f"                about=({' '.join(map(shlex.quote, verbs))})"] if verbs else []),
            f"                {'_describe verb about' if verbs else _zsh(level.alone)}",
            "            fi ;;",
        ]
    lines += [
        "    esac",
        "}",
        'if [[ ${funcstack[1]} == _headwater ]]; then _headwater "$@"; else compdef _headwater headwater; fi',
    ]
    return "\n".join(lines) + "\n"


def fish(levels: Sequence[Level]) -> str:
    """To be sourced, or in a folder of fish's completions."""
    lines = [
        "# headwater completion fish; source it, or write it to ~/.config/fish/completions/headwater.fish",
        "function __headwater_at",
        "    set -l verb ''",
        "    for word in (commandline -opc)[2..-1]",
        '        switch "$verb $word"',
    ]
    for name, found in _reached(levels):
        lines += [
            f"            case {_fish(f'{name[0]} {name[1]}')}",
            f"                set verb {_fish(found)}",
        ]
    lines += ["        end", "    end", '    test "$verb" = "$argv[1]"', "end", "complete -c headwater -f"]
    for level in levels:
        start = f"complete -c headwater -n {_fish(f'__headwater_at {_fish(level.verb)}')}"
        lines += [f"{start} -a {_fish(name)} -d {_fish(about)}" for name, about in level.verbs.items()]
        if level.alone.words:
            lines.append(f"{start} -a {_fish(' '.join(level.alone.words))}")
        if level.alone.files:
            lines.append(f"{start} -F")
        for option in level.options:
            flags = " ".join(
                f"-l {_fish(flag[2:])}" if flag.startswith("--") else f"-s {_fish(flag[1:])}"
                for flag in option.flags
            )
            lines.append(f"{start} {flags}{_fish_value(option.value)} -d {_fish(option.about)}")
    return "\n".join(lines) + "\n"


SHELLS: Mapping[str, Callable[[Sequence[Level]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""By its name, what writes a shell's script."""


def _reached(levels: Sequence[Level]) -> Iterable[tuple[tuple[str, str], str]]:
    """A verb and the next word, and the verb that both make."""
    return [((level.verb, name), f"{level.verb} {name}".strip()) for level in levels for name in level.verbs]


def _steps(levels: Sequence[Level], indent: str) -> list[str]:
    """Arms of a ``case`` over ``"$verb $word"``, for bash and zsh."""
    return [
        f"{indent}{shlex.quote(f'{verb} {word}')}) verb={shlex.quote(found)} ;;"
        for (verb, word), found in _reached(levels)
    ]


def _places(level: Level, option: Option) -> str:
    """The patterns of ``"$verb/$before"`` behind an option."""
    return "|".join(shlex.quote(f"{level.verb}/{flag}") for flag in option.flags)


def _words(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _bash(value: Value) -> str:
    """Behind an option that takes anything nothing is offered: `options` stays empty."""
    return f"words={_words(value.words)} files={'1' if value.files else ''}"


def _zsh(value: Value) -> str:
    parts = ["compadd -- " + " ".join(map(shlex.quote, value.words))] if value.words else []
    return "; ".join([*parts, *(["_files"] if value.files else [])]) or ":"


def _fish(text: str) -> str:
    """In single quotes, within which fish reads a backslash before a quote or a backslash."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _fish_value(value: Value | None) -> str:
    if value is None:
        return ""
    if value.files:
        return " -r -F"
    return f" -x -a {_fish(' '.join(value.words))}" if value.words else " -x"
