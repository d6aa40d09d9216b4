"""Checkpoint: everything the server must know to go on after a crash, in one atomic file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from headwater.errors import StorageError
from headwater.files import write_atomically
from headwater.server.evaluation import Tracker
from headwater.state import AdapterState, StateSpec
from headwater.strategies.strategy import ServerState


@dataclass(frozen=True)
class Checkpoint:
    """The server after a round.

    Args:
        run: id of the run.
        server: the strategy's state: round, global adapter, momentum.
        tracker: the best evaluation so far.
        best: the best round's adapter; None before the first evaluation.
        accepted: for each client, the last round whose update was accepted.
    """

    run: str
    server: ServerState
    tracker: Tracker
    best: AdapterState | None = None
    accepted: dict[str, int] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the checkpoint; the old one stays if that fails.

        Raises:
            StorageError: the disk is full or not writable.
        """
        groups = {"state": self.server.state, "momentum": self.server.momentum, "best": self.best}
        present = {g: s for g, s in groups.items() if s is not None}
        digests = {g: s.sha256() for g, s in present.items()}
        if digests.get("best") == digests["state"]:
            del present["best"]  # the same values: kept once
        arrays = {f"{g}/{n}": t.contiguous().numpy() for g, s in present.items() for n, t in s.items()}
        meta = {
            "run": self.run,
            "round": self.server.round,
            "spec": self.server.state.spec.fingerprint(),
            "sha256": digests,
            "tracker": [
                self.tracker.metric,
                self.tracker.best_round,
                repr(self.tracker.best_value),
                self.tracker.since,
            ],
            "accepted": self.accepted,
        }
        write_atomically(path, save(arrays, metadata={"headwater": json.dumps(meta)}))

    @staticmethod
    def load(path: Path, spec: StateSpec, run: str) -> Checkpoint | None:
        """The checkpoint in ``path``; None if there is none yet.

        Raises:
            StorageError: it is damaged, of another adapter, or of another run.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["headwater"])
                groups: dict[str, AdapterState] = {}
                if meta["spec"] == spec.fingerprint() and meta["run"] == run:
                    for group, digest in meta["sha256"].items():
                        if group == "best" and digest == meta["sha256"]["state"]:
                            groups[group] = groups["state"]
                            continue
                        state = AdapterState(spec, {n: file.get_tensor(f"{group}/{n}") for n in spec.by_name})
                        if state.sha256() != digest:
                            raise ValueError(f"{group} does not match its hash")
                        groups[group] = state
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise StorageError(
                f"checkpoint {path}", expected="what was written", got=f"damage ({error})"
            ) from error
        if not groups:
            raise StorageError(
                f"checkpoint {path}",
                expected=f"run {run[:12]} and spec {spec.fingerprint()[:12]}",
                got=f"run {meta['run'][:12]} and spec {meta['spec'][:12]}",
                hint="The federation file, the seed or the model has changed since.",
            )
        metric, best_round, best_value, since = meta["tracker"]
        return Checkpoint(
            run=run,
            server=ServerState(meta["round"], groups["state"], groups.get("momentum")),
            tracker=Tracker(metric, best_round, float(best_value), since),
            best=groups.get("best"),
            accepted=meta["accepted"],
        )
