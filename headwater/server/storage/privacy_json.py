"""What a checkpoint says of a run's noise: :func:`privacy_to_json`, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from headwater.errors import ConfigError
from headwater.privacy.correlated.kinds import described, mechanism_of
from headwater.privacy.correlated.mechanism import Participation
from headwater.strategies.strategy import NoiseSequence, PrivacyState


def privacy_to_json(state: PrivacyState) -> dict[str, Any]:
    """Bound and noise; of correlated noise also the sequence, and whom rounds have asked."""
    content: dict[str, Any] = {"clip": state.clip.hex(), "multiplier": state.multiplier.hex()}
    if (sequence := state.sequence) is not None:
        content["sequence"] = {
            "first": sequence.first,
            "mechanism": described(sequence.mechanism),
            "participation": asdict(sequence.participation),
        }
        content["asked"] = {name: list(times) for name, times in state.asked.items()}
    return content


def privacy_from_json(content: Mapping[str, Any] | None) -> PrivacyState | None:
    """What was written; None of a run without noise.

    Raises:
        ValueError: no bound or no noise, or a sequence of no mechanism.
        LookupError, TypeError: something is missing, or of another kind.
    """
    if content is None:
        return None
    asked = dict(content.get("asked", {}))
    state = PrivacyState(
        float.fromhex(content["clip"]),
        float.fromhex(content["multiplier"]),
        _sequence(content.get("sequence")),
        {str(name): (int(last), int(times)) for name, (last, times) in asked.items()},
    )
    if not (0 < state.clip < math.inf and 0 < state.multiplier < math.inf):
        raise ValueError("privacy has no bound or no noise")
    return state


def _sequence(content: Mapping[str, Any] | None) -> NoiseSequence | None:
    if content is None:
        return None
    try:
        who = Participation(**content["participation"])
        return NoiseSequence(int(content["first"]), mechanism_of(content["mechanism"]), who)
    except ConfigError as error:
        raise ValueError(str(error)) from error
