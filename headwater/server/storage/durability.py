"""Durability: what a run needs to last for weeks and over crashes; a simulation needs none of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from headwater.config.federation import Federation
from headwater.errors import StorageError
from headwater.files import write_atomically
from headwater.protocol.messages import ClientProfile
from headwater.security.receipt_keys import ReceiptKey
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.profiles import profile_from
from headwater.server.storage.update_spool import Spool


@dataclass(frozen=True)
class OpenRoundRecord:
    """Who was asked in the open round, so that a restart plans the same round again.

    Args:
        round: its number.
        profiles: of the clients in its plan.
        bases: for buffered rounds: hash of the base that each version's clients started from.
        rounds: of the federation, on which the learning rate depends, when the round was planned; 0 if
            that is not known.
        methods: names of the clients' methods; empty if they are not known.
        codec: of updates when it was planned, as JSON; empty if that is not known.
        cohort: likewise, of what it was drawn by.
    """

    round: int
    profiles: Mapping[str, ClientProfile]
    bases: Mapping[int, str]
    rounds: int = 0
    methods: Mapping[str, str] = field(default_factory=dict)
    codec: str = ""
    cohort: str = ""

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        content = {
            "round": self.round,
            "profiles": [asdict(p) for _, p in sorted(self.profiles.items())],
            "rounds": self.rounds,
            "bases": {str(n): digest for n, digest in self.bases.items()},
            "methods": dict(self.methods),
            "codec": self.codec,
            "cohort": self.cohort,
        }
        write_atomically(path, json.dumps(content, indent=1).encode())

    @staticmethod
    def load(path: Path) -> OpenRoundRecord | None:
        """The record in ``path``; None if there is none.

        Raises:
            StorageError: it is damaged.
        """
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            profiles = {row["client"]: profile_from(row) for row in content["profiles"]}
            bases = {int(n): str(digest) for n, digest in content["bases"].items()}
            methods = {str(client): str(name) for client, name in content.get("methods", {}).items()}
            return OpenRoundRecord(
                int(content["round"]),
                profiles,
                bases,
                int(content.get("rounds", 0)),
                methods,
                str(content.get("codec", "")),
                str(content.get("cohort", "")),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"{path}",
                expected="the open round's clients",
                got=str(error),
                hint="Delete the file: the round is planned afresh.",
            ) from error


@dataclass(frozen=True)
class Durability:
    """What only a daemon gives a run.

    Args:
        spool: where accepted updates of the open round wait for its end.
        versions: where every round's adapter goes.
        open_round: file of the open round's clients.
        settings: the federation with the organiser's changes, asked between rounds.
        rollback: the version to go on from, if the organiser asks for it.
        rolled_back: told when that is done and on disk.
        leaving: the client for whose sake it is asked for; empty of any other reason.
        wire_run_id: the run's id among the clients.
        receipt_key: signs the run's receipts; one of the run's own if None.
    """

    spool: Spool
    versions: Versions
    open_round: Path
    settings: Callable[[], Federation]
    rollback: Callable[[], int | None]
    rolled_back: Callable[[], None]
    wire_run_id: str
    receipt_key: Callable[[], ReceiptKey] | None = None
    leaving: Callable[[], str] = str

    @property
    def masked_round(self) -> Path:
        """File of how far the open round's masked sum has come."""
        return self.open_round.with_name("masked_round.json")

    def forget_through(self, round: int) -> None:
        """Rounds up to ``round`` are in the checkpoint: their record and their replies are needed no more.

        Also the first thing after a start: a crash right after the checkpoint leaves a record that would
        pass for an open round's.

        Raises:
            StorageError: the record is damaged.
        """
        record = OpenRoundRecord.load(self.open_round)
        if record is not None and record.round <= round:
            self.open_round.unlink(missing_ok=True)
        self.spool.drop_through(round)
