"""``headwater plugins``: which kinds installed packages bring, and whether a machine's owner allows them.

Reads what is installed and imports none of it, and no torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.config.adapter import Adapter
from headwater.config.agent import load_agent
from headwater.config.codec import Codec
from headwater.config.daemon import load_daemon
from headwater.config.data import Data
from headwater.config.plugins import FAMILIES, LISTS, Plugin, installed
from headwater.config.settings import by_kind
from headwater.config.strategy import Strategy
from headwater.config.trackers import Tracker
from headwater.config.training import Training

BUILT_IN: Mapping[str, Any] = {
    "rules": Strategy,
    "codecs": Codec,
    "trainers": Training,
    "adapter_kinds": Adapter,
    "tasks": Data,
    "trackers": Tracker,
}
"""The union of settings of each family."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="agent.toml or server.toml: is it allowed there?"
    )
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    allowed = None if options.file is None else _allowed(options.file)
    rows = [(plugin, _status(plugin, allowed)) for plugin in installed()]
    if options.json:
        print(json.dumps([asdict(plugin) | {"status": status} for plugin, status in rows]))
        return 0
    if not rows:
        print("No installed package brings a kind. Groups of entry points that are looked at:")
        print("\n".join(f"  headwater.{family}  for {_table(family)}" for family in FAMILIES))
        return 0
    for plugin, status in rows:
        print(f"{plugin.name}: {status}")
        print(f'  kind = "{plugin.kind}" in {_table(plugin.family)}')
        print(f"  package {plugin.release}, {plugin.settings} in {plugin.folder}")
    return 0


def _table(family: str) -> str:
    """The head of its table in a federation file."""
    return f"[[{FAMILIES[family]}]]" if family in LISTS else f"[{FAMILIES[family]}]"


def _allowed(file: Path) -> list[str]:
    """What an agent's or a server's file allows; a server's folder stands for its file."""
    if file.is_dir():
        file = file / "server.toml"
    if file.name == "server.toml":
        return load_daemon(file).plugins.allow
    return load_agent(file).file.plugins.allow


def _status(plugin: Plugin, allowed: list[str] | None) -> str:
    if plugin.kind in by_kind(BUILT_IN[plugin.family]):
        return "never used, headwater has a kind of this name"
    if allowed is None:
        return "for headwater simulate; servers and agents ask their owner's file"
    return "allowed" if plugin.name in allowed else "not allowed"
