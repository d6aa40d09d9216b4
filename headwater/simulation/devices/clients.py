"""DeviceClients: the clients of a simulation, who come and go as their devices do; and the round's times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import Any

from headwater.protocol.messages import ClientProfile
from headwater.server.clients.client_pool import FixedClients, LeftAtWork
from headwater.server.clients.exchange import Exchange
from headwater.server.round_record import RoundDraft
from headwater.simulation.devices.at_work import AtWorkFiles
from headwater.simulation.devices.clock import NEVER, VirtualClock, micros, seconds
from headwater.simulation.devices.fleet import Fleet
from headwater.simulation.devices.grid import DeviceGrid
from headwater.simulation.devices.growth import GrowingData
from headwater.simulation.devices.tasks import Spent

TRAIN = "train"


@dataclass(frozen=True, slots=True)
class SimulatedWay:
    """What is between a simulation's server and its clients.

    Args:
        clock: simulated time.
        fleet: the devices.
        grid: where tasks are timed.
        files: where tasks outlive this process.
        done: the round that a resumed run goes on from; None for a new one.
        growing: how many rows clients have; None where each has all from the start.
    """

    clock: VirtualClock
    fleet: Fleet
    grid: DeviceGrid
    files: AtWorkFiles
    done: int | None
    growing: GrowingData | None = None


class DeviceClients(FixedClients):
    """The clients that were there at the start, each ready when its device is online.

    Args:
        exchange: with their nodes.
        profiles: by name.
        lost: who did not get so far, and why.
        way: to them.
    """

    def __init__(
        self,
        exchange: Exchange,
        profiles: Mapping[str, ClientProfile],
        lost: Mapping[str, str] = MappingProxyType({}),
        *,
        way: SimulatedWay,
    ) -> None:
        super().__init__(exchange, profiles, lost)
        self._clock, self._fleet, self._grid, self._files = way.clock, way.fleet, way.grid, way.files
        clock, fleet, grid = way.clock, way.fleet, way.grid
        left = way.files.load(way.done) if way.done is not None else []
        requests = grid.expect(left)
        self._left = [
            LeftAtWork(r.client, r.round, r.state_sha256, seconds(task.asked))
            for r, task in zip(requests, left, strict=True)
        ]
        for request in requests:
            exchange.send([(request.client, request)], request.round)
        self._began = self._closed = clock.now
        self._ready: Mapping[str, ClientProfile] | None = self._profiles  # None until it is asked for again
        self._online = set(self._profiles)
        self._changes: list[tuple[int, str]] = []
        if not fleet.always_online:
            self._online = {name for name in self._profiles if fleet.times(name).online(clock.now)}
            self._ready = None
            changes = ((fleet.times(name).next_change(clock.now), name) for name in self._profiles)
            self._changes = [change for change in changes if change[0] < NEVER]
            heapify(self._changes)
        self._moved: set[str] = set()
        self._uploads: dict[str, list[int]] = {}
        self._growing, self._whole = way.growing, self._profiles
        if self._growing is not None:
            held = {r.client: r.plan.rows or self._whole[r.client].train_examples for r in requests}
            most = {name: profile.train_examples for name, profile in self._whole.items()}
            self._growing.begin(most, clock.now, held)
            self._show(self._whole)
        clock.watch(self._next_change)

    def _show(self, names: Iterable[str]) -> None:
        """Have the profiles say how many rows these clients have now."""
        assert self._growing is not None, "or there is nothing to show"
        rows = self._growing.of(names)
        changed = {name: n for name, n in rows.items() if n != self._profiles[name].train_examples}
        if changed:
            shown = {name: replace(self._whole[name], train_examples=n) for name, n in changed.items()}
            self._profiles = {**self._profiles, **shown}
            self._ready = None

    def profiles(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        self._update()
        return self._profiles

    def at_work(self) -> Sequence[LeftAtWork]:  # noqa: D102 - inherited
        left, self._left = self._left, []
        return left

    def ready(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        self._update()
        if self._ready is None:
            self._ready = {n: p for n, p in self._profiles.items() if n in self._online}
        return self._ready

    def is_away(self, client: str) -> bool:  # noqa: D102 - inherited
        self._update()
        return client not in self._online

    def missing(self) -> Mapping[str, str]:  # noqa: D102 - inherited
        self._update()
        return {name: "offline (simulated)" for name in self._profiles if name not in self._online}

    def moved(self) -> Collection[str]:  # noqa: D102 - inherited
        self._update()
        moved, self._moved = self._moved, set()
        return moved

    def uploads(self) -> Mapping[str, Sequence[int]]:
        """Of trainings that ended by :meth:`describe`; of those that were cut short, the part that came."""
        uploads, self._uploads = self._uploads, {}
        return uploads

    def _next_change(self, limit: int) -> int:
        self._update()  # nobody may have asked since the last one
        rows = NEVER if self._growing is None else self._growing.next_change()
        return min(rows, self._changes[0][0] if self._changes else NEVER)

    def _update(self) -> None:
        """Let those come and go whose time has come."""
        now = self._clock.now
        while self._changes and self._changes[0][0] <= now:
            _, name = heappop(self._changes)
            times = self._fleet.times(name)
            if (following := times.next_change(now)) < NEVER:
                heappush(self._changes, (following, name))
            (self._online.add if times.online(now) else self._online.discard)(name)
            self._moved.add(name)
            self._ready = None
        if self._growing is not None and (come := self._growing.come(now)):
            self._show(come)
            self._moved.update(come)

    def round_closed(self) -> None:
        """Training is over, and the server merges."""
        self._closed = self._clock.now
        self._clock.elapse(micros(self._fleet.settings.server_s))

    def describe(self, draft: RoundDraft) -> None:
        """Write the round's simulated times, and what its clients spent."""
        self._files.save(draft.round, self._grid.at_work())
        began, closed, now = self._began, self._closed, self._clock.now
        if self._growing is not None:
            self._growing.count(now, self._grid.working())
            self._show(self._whole)
        self._began = self._closed = now
        spent = self._grid.take_spent()
        trained = sorted((s for s in spent if s.kind == TRAIN), key=lambda s: (s.client, s.ended, s.asked))
        for task in trained:
            if (speed := task.bytes_per_s) is not None:
                self._uploads.setdefault(task.client, []).append(speed)
        rows = self._rows(trained, closed)
        evaluations = sum(s.joules for s in spent if s.kind != TRAIN)
        joules = sum(row["joules"] for row in rows.values()) + evaluations
        draft.simulated(
            {
                "start_s": seconds(began),
                "trained_s": seconds(max(began, closed)),
                "end_s": seconds(now),
                "joules": joules,
                "evaluation_joules": evaluations,
            },
            rows,
        )

    def _rows(self, spent: Iterable[Spent], closed: int) -> dict[str, dict[str, Any]]:
        """By client its last task (they come in order), with the energy of all and of waiting for the end."""
        rows: dict[str, dict[str, Any]] = {}
        for task in spent:
            before = rows.get(task.client, {}).get("joules", 0.0)
            rows[task.client] = {
                "asked_s": seconds(task.asked),
                "download_s": seconds(task.download),
                "compute_s": seconds(task.compute),
                "upload_s": seconds(task.upload),
                "end_s": seconds(task.ended),
                "joules": before + task.joules,
                "answered": task.answered,
            }
        for client, row in rows.items():
            idle = max(0.0, seconds(closed) - row["end_s"])
            row["joules"] += idle * self._fleet.device(client).power.idle_watts
        return rows
