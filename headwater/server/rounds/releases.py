"""Releases: a round's noised sum leaves once, is in the ledger before, and no round begins that overspends.

The order, of which a crash may stop any step: the event is written (:mod:`headwater.privacy.ledger`), noise
is drawn, the result is written to ``state/release.safetensors``; only then is it evaluated, sent or made a
version. A process that closes the round again, from the spool or with clients that trained anew, finds that
file and takes what is in it: the same sum never leaves under two noises. Without it, it spends once more.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace

from safetensors import SafetensorError, safe_open

from headwater.config.privacy import PrivacySettings
from headwater.errors import FederationStopped, SpecMismatch, StorageError
from headwater.files import write_atomically
from headwater.merging.aggregator import Merged
from headwater.privacy.accounting import Price, price, relation_of
from headwater.privacy.events import Event, SumReleased
from headwater.privacy.ledger import Ledger
from headwater.server.storage.run_folder import RunFolder
from headwater.state import AdapterState, StateSpec
from headwater.tensor_bytes import save


class Releases:
    """What a run has released, and may yet.

    Args:
        folder: of the run.
        spec: of the adapter.

    Raises:
        StorageError: a ledger that cannot be read.
    """

    def __init__(self, folder: RunFolder, spec: StateSpec) -> None:
        self._ledger, self._path, self._spec = Ledger(folder.ledger), folder.release, spec

    def require_whole(self, rounds: int) -> None:
        """Refuse a ledger that lacks a round: what was spent cannot be told, so nothing may follow.

        Args:
            rounds: that are finished.

        Raises:
            StorageError: which one.
        """
        told = {event.round for event in self._ledger.events if isinstance(event, SumReleased)}
        lacking = set(range(1, rounds + 1)) - told
        if lacking:
            raise self._cut_off(f"none of round {min(lacking)}")

    def overspends(self, settings: PrivacySettings, following: SumReleased, base_sha256: str) -> Price | None:
        """What the run would have spent after this release, if that is above its budget; else None.

        A release that an earlier process made, and whose round it did not end, costs nothing again.
        """
        if settings.epsilon is None or self._made(following.round, base_sha256) is not None:
            return None
        after = self._price(settings, (*self._ledger.events, following))
        return after if after.epsilon > settings.epsilon else None

    def spent(self, settings: PrivacySettings) -> Price:
        """What the run has spent."""
        return self._price(settings, self._ledger.events)

    def once(
        self,
        settings: PrivacySettings,
        event: Callable[[str], SumReleased],
        base_sha256: str,
        make: Callable[[], Merged],
    ) -> Merged:
        """The round's release: what an earlier process made of it, else ``make()``, its event written first.

        Args:
            settings: with the budget.
            event: of this id.
            base_sha256: of the state that the round started from; after a rollback it is another release.
            make: draws the noise.

        Raises:
            StorageError: ledger or release could not be written: nothing may leave.
            FederationStopped: it would overspend, whatever was said before the round.
        """
        told = event(secrets.token_hex(8))
        if (made := self._made(told.round, base_sha256)) is not None:
            return made
        if (after := self.overspends(settings, told, base_sha256)) is not None:
            raise FederationStopped(f"round {told.round}", **exhausted(settings, after))
        self._ledger.append(told)
        merged = make()
        arrays = {f"delta/{name}": tensor.contiguous().numpy() for name, tensor in merged.delta.items()}
        meta = {
            "release": told.release,
            "round": told.round,
            "base": base_sha256,
            "sha256": merged.delta.sha256(),
            "clip": None if merged.clip is None else merged.clip.hex(),
            "report": dict(merged.report),
            "clients": list(merged.clients),
        }
        write_atomically(self._path, save(arrays, metadata={"headwater": json.dumps(meta)}))
        return merged

    def _made(self, number: int, base_sha256: str) -> Merged | None:
        """What is in the file, if it is this round's.

        Raises:
            StorageError: it is damaged, or it is not in the ledger, which was written before it.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                meta = json.loads(file.metadata()["headwater"])
                if (meta["round"], meta["base"]) != (number, base_sha256):
                    return None
                if not self._ledger.has(meta["release"]):
                    raise self._cut_off(f"not release {meta['release']}, which is in {self._path.name}")
                delta = AdapterState(
                    self._spec, {name: file.get_tensor(f"delta/{name}") for name in self._spec.by_name}
                )
            if delta.sha256() != meta["sha256"]:
                raise ValueError("its values do not match their hash")
            clip = None if meta["clip"] is None else float.fromhex(meta["clip"])
            clients = tuple(str(name) for name in meta["clients"])
            report = {str(name): float(value) for name, value in meta["report"].items()}
        except (SafetensorError, SpecMismatch, LookupError, TypeError, ValueError, OSError) as error:
            raise StorageError(
                f"release {self._path}",
                expected="the release as it was written",
                got=f"a damaged file ({error})",
                hint="Restore it from a backup, or delete it: the round is then released and paid for again.",
            ) from error
        return replace(Merged(delta, clients, len(clients), report), clip=clip)

    def _cut_off(self, got: str) -> StorageError:
        return StorageError(
            f"ledger {self._ledger.path}",
            expected="an event for every release of the run",
            got=got,
            hint="It was shortened or removed. Restore it from the newest copy there is, or start a new run.",
        )

    def _price(self, settings: PrivacySettings, events: tuple[Event, ...]) -> Price:
        assert settings.delta is not None, "noised means there is one"
        relation = relation_of(events[-1].sampling) if events else "add-or-remove"
        return price(events, settings.delta, relation)


def exhausted(settings: PrivacySettings, after: Price) -> dict[str, str]:
    """Why no round follows, as the parts of an error."""
    return {
        "expected": f"a privacy budget ε of {settings.epsilon:g} that holds one more round",
        "got": f"ε {after.epsilon:.3f} at δ {after.delta:g} after it",
        "hint": "The adapters so far stay. More rounds need a larger budget, hence a new promise.",
    }


def recorded(spent: Price, budget: float | None) -> dict[str, object]:
    """The same for ``rounds.jsonl`` and ``summary.json``."""
    return {
        "epsilon": spent.epsilon,
        "epsilon_rdp": spent.rdp,
        "epsilon_pld": spent.pld,
        "delta": spent.delta,
        "relation": spent.relation,
        "budget": budget,
        "reproducible": spent.reproducible,
    }
