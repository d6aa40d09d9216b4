"""What clients have, kept on disk: :func:`load_profiles`, :func:`save_profiles`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.errors import StorageError
from headwater.files import write_atomically
from headwater.protocol.messages import ClientProfile, DeviceProfile, MethodCost


def profile_from(row: Mapping[str, Any]) -> ClientProfile:
    """A profile out of what ``dataclasses.asdict`` made of it, and JSON of that.

    Raises:
        KeyError, TypeError: it is none.
    """
    device = row.get("device")
    if device is not None:
        costs = {name: MethodCost(**cost) for name, cost in device["costs"].items()}
        device = DeviceProfile(**{**device, "costs": costs})
    return ClientProfile(**{**row, "device": device, "reads": tuple(row.get("reads", ()))})


def load_profiles(path: Path) -> dict[str, ClientProfile]:
    """What :func:`save_profiles` wrote; empty if there is no file.

    Raises:
        StorageError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["client"]: profile_from(row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(
            f"{path}",
            expected="the clients' profiles",
            got=str(error),
            hint="Delete the file: the clients are asked again.",
        ) from error


def save_profiles(path: Path, profiles: Mapping[str, ClientProfile]) -> None:
    """Write the profiles, sorted by name, atomically."""
    rows = [asdict(profile) for _, profile in sorted(profiles.items())]
    write_atomically(path, json.dumps(rows, indent=1).encode())
