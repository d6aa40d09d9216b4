"""What TensorBoard shows of a folder: :func:`shown`, :func:`steps`."""

from __future__ import annotations

from pathlib import Path


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag, steps and values, as TensorBoard's own reader finds them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def steps(folder: Path) -> list[int]:
    """The rounds, by a scalar that each of them has."""
    return [step for step, _ in shown(folder)["round/bytes_up"]]
