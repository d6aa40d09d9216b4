"""What an adapter's card may say where noise covers the run: :func:`covered`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COVERED = frozenset(
    {
        "adapter_round",
        "adapter_sha256",
        "engine",
        "federation",
        "federation_sha256",
        "groups",
        "how",
        "metric",
    }
    | {"name", "privacy", "rounds", "run", "seed", "start", "stopped", "version"}
)
"""Of the card: what noise covers, or what hangs on no owner's data."""


def covered(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of an adapter with noise: without bytes, failures, names, and how many took part.

    Args:
        card: the whole one.
    """
    return {name: value for name, value in card.items() if name in _COVERED}
