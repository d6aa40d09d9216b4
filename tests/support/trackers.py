"""A tracker of an installed package, which remembers what it was told; and a federation to track."""

from __future__ import annotations

from types import ModuleType

SOURCE = """
from typing import ClassVar, Literal
from headwater.config.traits import TrackerTraits
from headwater.server.trackers.tracker import RunTracker

SAID = []  # what every tracker of this module was told
WHEN = {}  # what is done then

class Told(TrackerTraits):
    implementation: ClassVar[str] = "stranger_tracker:Telling"
    kind: Literal["told"]
    url: str = ""

class Telling(RunTracker):
    def say(self, *words):
        if act := WHEN.get(words[0]):
            act(*words)
        SAID.append(words)
    def start(self, run): self.say("start", run.run, run.first)
    def round(self, record): self.say("round", record.round)
    def end(self, summary): self.say("end", summary["rounds"])
    def close(self): self.say("close")
"""
POINTS = {"trackers": {"told": "stranger_tracker:Told"}}
TABLES = {
    "federation": {"name": "t", "rounds": 3},
    "model": {"kind": "vector", "size": 4},
    "data": {"kind": "none", "clients": 2},
    "training": {"kind": "noop"},
}
"""The smallest federation."""


def rounds(stranger: ModuleType) -> list[int]:
    """The rounds that the package's tracker has taken."""
    return [words[1] for words in stranger.SAID if words[0] == "round"]
