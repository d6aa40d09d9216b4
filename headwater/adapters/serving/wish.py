"""Wish and Exported: what an export is asked for, and what it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.adapters.serving.arrival import Arrival
from headwater.adapters.serving.traits import LARGEST_RANK

if TYPE_CHECKING:  # torch and transformers take seconds
    from headwater.adapters.serving.through_peft import Logits

RECORD = "export.json"
"""What was exported and how, in the folder of the result."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, LARGEST_RANK)
"""What vLLM 0.33.0 takes for ``--max-lora-rank``."""


@dataclass(frozen=True)
class Wish:
    """What to export.

    Args:
        runtime: of :data:`~headwater.adapters.serving.facts.RUNTIMES`, or ``merged``.
        base: the base's folder or hub name; None for what the adapter says.
        rank: of all weights; None for the adapter's, or the next that the runtime has.
        dtype: of a merged model: ``keep``, ``float32``, or a type of GGUF.
        gguf: a GGUF of the base, to merge into.
        served: what Ollama's ``FROM`` names.
        anyway: write a merged model in which too little of the change arrives.
        compared: whether a merged model's logits are compared with PEFT's.
    """

    runtime: str
    base: str | None = None
    rank: int | None = None
    dtype: str = "keep"
    gguf: Path | None = None
    served: str = ""
    anyway: bool = False
    compared: bool = True


@dataclass
class Exported:
    """What was written.

    Args:
        folder: where.
        runtime: for what.
        remedy: what was done, as :class:`~headwater.adapters.serving.check.Verdict` has it.
        ranks: of the weights.
        reasons, remarks: of the verdict.
        command: lines that serve it.
        arrival: of a merged model, what of the change arrived.
        logits: of a merged model, against PEFT.
        compared_s: seconds that took, all models loaded for it.
    """

    folder: Path
    runtime: str
    remedy: str
    ranks: list[int] = field(default_factory=list)
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    command: str = ""
    arrival: Arrival | None = None
    logits: Logits | None = None
    compared_s: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self) | {"folder": str(self.folder), "format": "headwater.export.v1"}
        if self.arrival is not None:
            found["arrival"] = {"part": self.arrival.part, "error": self.arrival.error}
        return {name: value for name, value in found.items() if value not in (None, "", [], ())}
