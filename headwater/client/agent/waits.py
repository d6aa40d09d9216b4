"""Waits: what an agent waits for by its owner's rules, and until when: :func:`waits`. Pure."""

from __future__ import annotations

from datetime import datetime

from headwater.client.policy import Policy
from headwater.client.usage import DayUsage
from headwater.config.agent import AgentSettings


def waits(settings: AgentSettings, today: DayUsage, now: datetime) -> list[str]:
    """A line for each rule by which nothing is done now.

    Args:
        settings: the owner's file.
        today: what today has cost.
        now: local time.
    """
    policy, found = Policy(settings.file.policy), []
    window = settings.file.policy.window()
    if (asleep := policy.asleep(now)) is not None and window is not None:
        found.append(f"{asleep.text}; it works again at {window[0]:%H:%M}")
    if (spent := policy.exhausted(today)) is not None:
        found.append(f"{spent.text}; nothing more is done before midnight")
    return found
