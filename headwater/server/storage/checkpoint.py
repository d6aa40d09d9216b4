"""Checkpoint: everything the server must know to go on after a crash, in one atomic file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from headwater.errors import SpecMismatch, StorageError
from headwater.files import write_atomically
from headwater.merging.plan import NoisePlan
from headwater.receipts.written import Head
from headwater.seeds.directions import Directions, Integers
from headwater.seeds.seeded_state import SeededState
from headwater.seeds.slopes import SeedSlopes
from headwater.server.metrics import Tracker
from headwater.server.storage.down_record import DownRecord
from headwater.server.storage.privacy_json import privacy_from_json, privacy_to_json
from headwater.state import AdapterState, StateSpec
from headwater.strategies.strategy import ServerState
from headwater.tensor_bytes import save


@dataclass(frozen=True)
class Checkpoint:
    """The server after a round.

    Args:
        run: id of the run.
        server: the strategy's state: round, global adapter, moments, noise, coefficients of seeds.
        tracker: the best evaluation so far.
        best: the best round's adapter; None before the first evaluation.
        accepted: for each client, the last round whose update was accepted.
        down: what the clients hold of the global adapter.
        receipt: the run's last receipt.
    """

    run: str
    server: ServerState
    tracker: Tracker
    best: AdapterState | None = None
    accepted: dict[str, int] = field(default_factory=dict)
    down: DownRecord = field(default_factory=DownRecord)
    receipt: Head = field(default_factory=Head)

    def save(self, path: Path) -> None:
        """Write the checkpoint; the old one stays if that fails.

        Raises:
            StorageError: the disk is full or not writable.
        """
        seeded_state, noise = self.server.seeded_state, self.server.noise
        groups = {"state": self.server.state, "momentum": self.server.momentum, "best": self.best}
        groups |= {"second_moment": self.server.second_moment, "control": self.server.control}
        groups |= {"residual": self.server.residual, "shift": self.server.shift}
        groups["origin"] = None if seeded_state is None else seeded_state.origin
        present = {g: s for g, s in groups.items() if s is not None}
        digests = {g: s.sha256() for g, s in present.items()}
        if digests.get("best") == digests["state"]:
            del present["best"]  # the same values: kept once
        arrays = {f"{g}/{n}": t.contiguous().numpy() for g, s in present.items() for n, t in s.items()}
        if seeded_state is not None:
            arrays["span/sums"] = seeded_state.sums
            digests["span"] = _digest(self.server.state.spec, seeded_state.sums)
        arrays |= self.down.arrays()
        seed_slopes = self.server.seed_slopes
        if seed_slopes is not None:
            arrays |= {"steepness/sums": seed_slopes.sums, "steepness/counts": seed_slopes.counts}
            digests["steepness"] = _digest(
                self.server.state.spec, seed_slopes.sums.view(np.int64), seed_slopes.counts
            )
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
            "noise": None
            if noise is None
            else {"between": noise.between.hex(), "of": _hex(noise.noises), "progress": _hex(noise.progress)},
            "span": None if seeded_state is None else _described(seeded_state),
            "down": self.down.described(),
        }
        if self.receipt.sha256:
            meta["receipt"] = [self.receipt.number, self.receipt.sha256]
        if (privacy := self.server.privacy) is not None:
            meta["privacy"] = privacy_to_json(privacy)
        if self.server.links:
            meta["links"] = self.server.links
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
                of, adapter, accepted = str(meta["run"]), str(meta["spec"]), dict(meta["accepted"])
                metric, best_round, best_value, since = meta["tracker"]
                number, sha256 = meta.get("receipt", (-1, ""))
                receipt = Head(int(number), str(sha256))
                tracker = Tracker(metric, best_round, float(best_value), since)
                groups: dict[str, AdapterState] = {}
                down = DownRecord()
                if meta["spec"] == spec.fingerprint() and meta["run"] == run:
                    for group, digest in meta["sha256"].items():
                        if group in ("span", "steepness"):
                            continue  # no adapter: see below
                        if group == "best" and digest == meta["sha256"]["state"]:
                            groups[group] = groups["state"]
                            continue
                        state = AdapterState(spec, {n: file.get_tensor(f"{group}/{n}") for n in spec.by_name})
                        if state.sha256() != digest:
                            raise ValueError(f"{group} does not match its hash")
                        groups[group] = state
                    sums = file.get_tensor("span/sums").numpy() if meta.get("span") else None
                    server = _server(meta, groups, sums)
                    if "down" in meta:  # files of older versions know nothing of it
                        down = DownRecord.read(meta["down"], lambda name: file.get_tensor(name).numpy())
                    if "steepness" in meta["sha256"]:
                        seed_slopes = SeedSlopes(
                            file.get_tensor("steepness/sums").numpy(),
                            file.get_tensor("steepness/counts").numpy(),
                        )
                        words = seed_slopes.sums.view(np.int64), seed_slopes.counts
                        if _digest(spec, *words) != meta["sha256"]["steepness"]:
                            raise ValueError("steepness does not match its hash")
                        server = replace(server, seed_slopes=seed_slopes)
        except (
            SafetensorError,
            SpecMismatch,
            LookupError,
            TypeError,
            ValueError,
            OverflowError,
            OSError,
        ) as error:
            raise StorageError(
                f"checkpoint {path}",
                expected="the checkpoint as it was written",
                got=f"a damaged file ({error})",
                hint="Restore it from a backup.",
            ) from error
        if not groups:
            raise StorageError(
                f"checkpoint {path}",
                expected=f"run {run[:12]} and spec {spec.fingerprint()[:12]}",
                got=f"run {of[:12]} and spec {adapter[:12]}",
                hint="The federation file, the seed or the model has changed since.",
            )
        return Checkpoint(
            run=run,
            server=server,
            tracker=tracker,
            best=groups.get("best"),
            accepted=accepted,
            down=down,
            receipt=receipt,
        )


def _server(
    meta: Mapping[str, Any], groups: Mapping[str, AdapterState], sums: Integers | None
) -> ServerState:
    """The strategy's state; files of older versions know less of methods, and no coefficients.

    Raises:
        ValueError: the coefficients are not those that were written, or do not make the state.
    """
    noise, seeded_state = meta.get("noise"), None
    if sums is not None:
        if _digest(groups["state"].spec, sums) != meta["sha256"]["span"]:
            raise ValueError("span does not match its hash")
        about, origin = meta["span"], groups["origin"]
        key, size = bytes.fromhex(about["key"]), origin.spec.numel
        directions = Directions(key, about["distribution"], size)
        seeded_state = SeededState(origin, directions, about["unit_bits"], sums)
        if seeded_state.state() != groups["state"]:
            raise ValueError("the coefficients of seeds do not make the state")
    return ServerState(
        meta["round"],
        groups["state"],
        groups.get("momentum"),
        _noise_plan(noise) if isinstance(noise, dict) else None,
        seeded_state,
        second_moment=groups.get("second_moment"),
        control=groups.get("control"),
        residual=groups.get("residual"),
        shift=groups.get("shift"),
        privacy=privacy_from_json(meta.get("privacy")),
        links=_links(meta.get("links", {})),
    )


def _links(content: object) -> dict[str, tuple[int, ...]]:
    """What was written.

    Raises:
        ValueError: no speeds by client.
    """
    if not isinstance(content, dict) or not all(isinstance(speeds, list) for speeds in content.values()):
        raise ValueError("links are not by client")
    if not all(type(speed) is int and speed >= 0 for speeds in content.values() for speed in speeds):
        raise ValueError("a link's speed is no whole number of bytes")
    return {client: tuple(speeds) for client, speeds in content.items()}


def _noise_plan(noise: Mapping[str, Any]) -> NoisePlan:
    """What was written.

    Raises:
        ValueError: numbers that no round tells.
    """
    values, progress = noise["of"], noise.get("progress", {})
    if not isinstance(values, dict) or not isinstance(progress, dict):
        raise ValueError("noise is not by method")
    plan = NoisePlan(
        float.fromhex(noise["between"]),
        {name: float.fromhex(v) for name, v in values.items()},
        {name: float.fromhex(v) for name, v in progress.items()},
    )
    if not all(0 <= v < math.inf for v in (plan.between, *plan.noises.values())):
        raise ValueError("noise is not a squared norm")
    if not all(0 <= c <= 1 for c in plan.progress.values()):
        raise ValueError("progress is not between 0 and 1")
    return plan


def _hex(values: Mapping[str, float]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def _described(seeded_state: SeededState) -> dict[str, Any]:
    """What besides its arrays makes a seeded state."""
    directions = seeded_state.directions
    return {
        "key": directions.key.hex(),
        "distribution": directions.distribution,
        "unit_bits": seeded_state.unit_bits,
    }


def _digest(spec: StateSpec, *arrays: Integers) -> str:
    """SHA-256 over the spec's fingerprint and the arrays, as states have it."""
    parts = [a.astype("<i8", copy=False).tobytes() for a in arrays]
    return hashlib.sha256(spec.fingerprint().encode() + b"".join(parts)).hexdigest()
