"""Releases: a round's noised sum leaves once, is in the ledger before, and no round begins that overspends.

The order, of which a crash may stop any step: the event is written (:mod:`headwater.privacy.ledger`), noise
is drawn, the result is written to ``state/release.safetensors``; only then is it evaluated, sent or made a
version. A process that closes the round again, from the spool or with clients that trained anew, finds that
file and takes what is in it: the same sum never leaves under two noises. Without it, it spends once more.
Noise that is correlated over rounds is paid once, and :mod:`.noise_positions` says where it goes on.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from headwater.config.privacy import PrivacySettings
from headwater.errors import FederationStopped, SpecMismatch, StorageError
from headwater.files import write_atomically
from headwater.merging.aggregator import Merged
from headwater.privacy.accounting import Price, price, relation_for
from headwater.privacy.events import (
    Event,
    PositionReleased,
    SequenceReleased,
    SharesReleased,
    SumReleased,
)
from headwater.privacy.ledger import Ledger
from headwater.server.rounds.noise_positions import NoisePositions, Place
from headwater.server.storage.run_folder import RunFolder
from headwater.state import AdapterState, StateSpec
from headwater.strategies.strategy import ServerState
from headwater.tensor_bytes import save

Following: TypeAlias = SumReleased | SharesReleased | SequenceReleased
"""What the next round's release tells: by itself, or as one of a sequence, which is told as a whole."""
_MEMORY = "noise/memory"


class Releases:
    """What a run has released, and may yet.

    Args:
        folder: of the run.
        spec: of the adapter.

    Attributes:
        draw: correlated noise, while :meth:`once` makes a release.

    Raises:
        StorageError: a ledger that cannot be read.
    """

    def __init__(self, folder: RunFolder, spec: StateSpec) -> None:
        self._ledger, self._path, self._spec = Ledger(folder.ledger), folder.release, spec
        self._positions = NoisePositions(self._ledger)
        self.draw = self._positions.draw
        self._total = -1

    def require_whole(self, rounds: int) -> None:
        """Refuse a ledger that lacks a round: what was spent cannot be told, so nothing may follow.

        Args:
            rounds: that are finished.

        Raises:
            StorageError: which one.
        """
        kinds = SumReleased | SharesReleased | PositionReleased
        told = {event.round for event in self._ledger.events if isinstance(event, kinds)}
        lacking = set(range(1, rounds + 1)) - told
        if lacking:
            raise self._cut_off(f"none of round {min(lacking)}")

    def overspends(self, settings: PrivacySettings, following: Following, base_sha256: str) -> Price | None:
        """What the run would have spent after this release, if that is above its budget; else None.

        A release that an earlier process made, and whose round it did not end, costs nothing again; nor does
        one of a sequence that is paid.
        """
        if settings.epsilon is None or self._made(following.round, base_sha256) is not None:
            return None
        if isinstance(following, SequenceReleased) and self._positions.place(following, self._last()):
            return None
        if self._paid(following) is not None:
            return None
        after = self._price(settings, (*self._ledger.events, following))
        return after if after.epsilon > settings.epsilon else None

    def made(self, server: ServerState) -> bool:
        """Whether an earlier process made the release of the round after ``server``, and did not end it."""
        last = self._last()
        return last is not None and (last["round"], last["base"]) == (
            server.round + 1,
            server.state.sha256(),
        )

    def spent(self, settings: PrivacySettings) -> Price:
        """What the run has spent."""
        return self._price(settings, self._ledger.events)

    def rounds_left(self, settings: PrivacySettings, following: Following, most: int) -> int | None:
        """How many more rounds the budget holds, of ``most`` that are planned; None without a budget."""
        if settings.epsilon is None:
            return None
        if isinstance(following, SequenceReleased):
            place = self._positions.place(following, self._last())
            if place is None:
                place = None if self._fitting(settings, following, 1) == 0 else Place(following, 0)
            return 0 if place is None else min(most, place.sequence.participation.rounds - place.step)
        return self._fitting(settings, following, most)

    def _fitting(self, settings: PrivacySettings, following: Following, most: int) -> int:
        """How many more such events the budget holds, at most ``most``: by bisection of totals.

        They are tried where they were before, one event less each round: prices are remembered.
        """
        assert settings.epsilon is not None, "who asks has a budget"
        budget, events = settings.epsilon, self._ledger.events

        def fits(more: int) -> bool:
            return self._price(settings, (*events, *[following] * more)).epsilon <= budget

        if most <= 0 or fits(most):
            return max(most, 0)
        fitting, above = 0, most
        if 0 <= (guess := self._total - len(events)) < most and fits(guess) and not fits(guess + 1):
            fitting, above = guess, guess + 1
        while above - fitting > 1:
            middle = (fitting + above) // 2
            fitting, above = (middle, above) if fits(middle) else (fitting, middle)
        self._total = len(events) + fitting
        return fitting

    def once(
        self,
        settings: PrivacySettings,
        event: Callable[[str], Following],
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
            if about := (self._last() or {}).get("sequence"):
                self._positions.close(told.round, told.release, about)
            return made
        if (after := self.overspends(settings, told, base_sha256)) is not None:
            raise FederationStopped(f"round {told.round}", **exhausted(settings, after))
        if isinstance(told, SequenceReleased):
            self._open(told)
        elif (paid := self._paid(told)) is not None:
            told = paid
        else:
            self._ledger.append(told)
        merged = make()
        arrays = {f"delta/{name}": tensor.contiguous().numpy() for name, tensor in merged.delta.items()}
        sequence: dict[str, Any] = {}
        if isinstance(told, SequenceReleased):
            sequence, arrays[_MEMORY] = self._positions.told()
            noise = self._positions.prefix_noise(sequence, merged.report["noise_std"])
            merged = replace(merged, report={**merged.report, "prefix_noise_std": noise})
        meta = {
            "release": told.release,
            "round": told.round,
            "base": base_sha256,
            "sha256": merged.delta.sha256(),
            "clip": None if merged.clip is None else merged.clip.hex(),
            "report": dict(merged.report),
            "clients": list(merged.clients),
            "asked": list(merged.asked),
            **({"sequence": sequence} if sequence else {}),
        }
        write_atomically(self._path, save(arrays, metadata={"headwater": json.dumps(meta)}))
        if sequence:
            self._positions.close(told.round, told.release, sequence)
        return merged

    def _paid(self, following: Following) -> SharesReleased | None:
        """The event of an earlier attempt at a sum of shares: no device sends its vector of a round again."""
        if not isinstance(following, SharesReleased):
            return None
        events = (e for e in self._ledger.events if isinstance(e, SharesReleased))
        return next((event for event in events if event.same(following)), None)

    def _open(self, told: SequenceReleased) -> None:
        """Go on in the sequence that is paid, with the memory of the round before; or pay for another."""
        last = self._last()
        place = self._positions.place(told, last)
        if place is None or place.step == 0:
            if place is None:
                self._ledger.append(told)
            self._positions.open(place or Place(told, 0), None, None)
            return
        assert last is not None, "else the memory is gone, and another begins"
        with safe_open(self._path, framework="np") as file:
            self._positions.open(place, file.get_tensor(_MEMORY), last["sequence"])

    def _last(self) -> dict[str, Any] | None:
        """What is told of the latest release; None if none is on disk.

        Raises:
            StorageError: it is damaged.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="np") as file:
                found: dict[str, Any] = json.loads(file.metadata()["headwater"])
                _ = found["round"], found["base"], found["release"]
                return found
        except (SafetensorError, LookupError, TypeError, ValueError, OSError) as error:
            raise self._damaged(error) from error

    def _made(self, number: int, base_sha256: str) -> Merged | None:
        """What is in the file, if it is this round's.

        Raises:
            StorageError: it is damaged, or it is not in the ledger, which was written before it.
        """
        if (meta := self._last()) is None or (meta["round"], meta["base"]) != (number, base_sha256):
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                if not self._ledger.has(meta.get("sequence", {}).get("id", meta["release"])):
                    raise self._cut_off(f"not release {meta['release']}, which is in {self._path.name}")
                delta = AdapterState(
                    self._spec, {name: file.get_tensor(f"delta/{name}") for name in self._spec.by_name}
                )
            if delta.sha256() != meta["sha256"]:
                raise ValueError("its values do not match their hash")
            clip = None if meta["clip"] is None else float.fromhex(meta["clip"])
            clients = tuple(str(name) for name in meta["clients"])
            asked = tuple(str(name) for name in meta.get("asked", ()))
            report = {str(name): float(value) for name, value in meta["report"].items()}
        except (SafetensorError, SpecMismatch, LookupError, TypeError, ValueError, OSError) as error:
            raise self._damaged(error) from error
        return replace(Merged(delta, clients, len(clients), report, asked=asked), clip=clip)

    def _damaged(self, error: Exception) -> StorageError:
        return StorageError(
            f"release {self._path}",
            expected="the release as it was written",
            got=f"a damaged file ({error})",
            hint="Restore it from a backup, or delete it: the round is then released and paid for again.",
        )

    def _cut_off(self, got: str) -> StorageError:
        return StorageError(
            f"ledger {self._ledger.path}",
            expected="an event for every release of the run",
            got=got,
            hint="It was shortened or removed. Restore it from the newest copy there is, or start a new run.",
        )

    def _price(self, settings: PrivacySettings, events: tuple[Event, ...]) -> Price:
        assert settings.delta is not None, "noised means there is one"
        relation = relation_for(events[-1]) if events else "add-or-remove"
        return price(events, settings.delta, relation)


def exhausted(settings: PrivacySettings, after: Price) -> dict[str, str]:
    """Why no round follows, as the parts of an error."""
    return {
        "expected": f"a privacy budget ε of {settings.epsilon:g} that holds one more round",
        "got": f"ε {after.epsilon:.3f} at δ {after.delta:g} after it",
        "hint": "The adapters so far stay. More rounds need a larger budget, hence a new promise.",
    }


def recorded(spent: Price, budget: float | None, left: int | None) -> dict[str, object]:
    """The same for ``rounds.jsonl`` and ``summary.json``, with how many more rounds the budget holds."""
    return {
        "epsilon": spent.epsilon,
        "epsilon_rdp": spent.rdp,
        "epsilon_pld": spent.pld,
        "delta": spent.delta,
        "relation": spent.relation,
        "budget": budget,
        "reproducible": spent.reproducible,
        **({} if left is None else {"rounds_left": left}),
    }
