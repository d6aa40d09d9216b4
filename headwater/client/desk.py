"""Desk: what a device does with one delivery: read it, ask the policy, have it worked for, sign.

Whatever comes in, what goes out is a signed reply: an answer, or the reason why there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from headwater.client.joined import JoinedRun, JoinedRuns
from headwater.client.models import LocalModels
from headwater.client.outbox import Outbox, request_digest
from headwater.client.policy import Policy
from headwater.client.usage import Usage
from headwater.client.worker import WorkerDied
from headwater.config.agent import AgentSettings
from headwater.config.federation import VectorModel
from headwater.errors import DecodeError, HeadwaterError, StorageError, TrainingError
from headwater.proto.wire import decode_reply, decode_request, decode_signed, encode_reply, encode_signed
from headwater.protocol.messages import (
    NOT_JOINED,
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    ProfileRequest,
    Request,
    TrainRequest,
)

WORK_STEP_S = 10.0
"""How much work may be forgotten if the agent is killed in the middle of it."""


class OwnerStops(Exception):
    """The agent is to end now."""


class Works(Protocol):
    """A :class:`Worker`, or a test's stand-in."""

    notice: str

    def answer(
        self,
        joined: JoinedRun,
        model: Path | None,
        envelope: bytes,
        state: bytes,
        tick: Callable[[], None] = ...,
    ) -> bytes:
        """See :meth:`Worker.answer`."""

    def close(self) -> None:
        """See :meth:`Worker.close`."""


class Desk:
    """Answers deliveries for one owner. One at a time.

    Args:
        settings: the owner's file.
        worker: who works.
        sign: the device's signature over a reply.
        say: takes a line for the owner's log.
        should_stop: whether to drop everything.
        now: local time.
    """

    def __init__(
        self,
        settings: AgentSettings,
        worker: Works,
        sign: Callable[[bytes], bytes],
        say: Callable[[str], None],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.policy = Policy(settings.file.policy)
        self.usage = Usage(settings.state / "usage.json", say, now=now)
        self.runs = JoinedRuns(settings.state / "runs")
        self.outbox = Outbox(settings.state / "outbox")
        models = settings.file.models
        self.models = LocalModels(settings.model_folders, models.allow, settings.state / "models.json")
        self._name, self._worker, self._sign = settings.file.name, worker, sign
        self._say, self._should_stop, self._now = say, should_stop, now
        self._told = ""

    def answer(self, parts: Mapping[str, bytes]) -> bytes:
        """The signed reply to one delivery.

        Raises:
            OwnerStops: the agent is to end.
        """
        request: Request | None = None
        size = sum(len(part) for part in parts.values())
        try:
            if set(parts) != {"envelope", "state"}:
                raise DecodeError(
                    "delivery", expected="parts envelope and state", got=str(sorted(parts))[:80]
                )
            envelope, state = parts["envelope"], parts["state"]
            request = decode_request(envelope, state)
            reply = self._reply(request, envelope, state, size)
        except HeadwaterError as error:
            reply = self._failure(request, str(error))
        self.count(size)
        return encode_signed(reply, self._sign(reply))

    def instead_of(self, signed: bytes, reason: str) -> bytes | None:
        """The signed failure that takes the place of a reply which the server refuses for ``reason``.

        None if that reply was a failure itself: then there is nothing smaller to say.
        """
        reply = decode_reply(decode_signed(signed, max_bytes=len(signed))[0], max_bytes=len(signed))
        if isinstance(reply, ClientFailure):
            return None
        number = 0 if isinstance(reply, ClientProfile) else reply.round
        what = "profile" if isinstance(reply, ClientProfile) else f"round {number}"
        reason = f"the server refused the reply of {len(signed):,} bytes: {reason}"
        self._say(f"run {reply.run}: {what}: {reason}; it is told so")
        failure = encode_reply(ClientFailure(self._name, number, reason, reply.run))
        return encode_signed(failure, self._sign(failure))

    def count(self, size: int) -> None:
        """Count the bytes of a message against the day."""
        self._add(bytes=size)

    def paused(self) -> str | None:
        """Why nothing should be fetched now, if so."""
        return self.policy.exhausted(self.usage.today(self._now()))

    def rest(self) -> None:
        """Give the worker's memory back while the owner's hours are over."""
        if self.policy.asleep(self._now()):
            self._worker.close()

    def _reply(self, request: Request, envelope: bytes, state: bytes, size: int) -> bytes:
        joined = self._joined(request)
        usage, now = self.usage.today(self._now()), self._now()
        reason = self.policy.check(request, joined.settings, usage, now, size=size, examples=joined.examples)
        if reason is not None:
            return self._failure(request, reason)
        digest = request_digest(envelope, state)
        if isinstance(request, TrainRequest) and (known := self.outbox.get(digest)) is not None:
            self._say(f"run {request.run} round {request.round}: answered again with the same bytes")
            return known
        vector = isinstance(joined.settings.model, VectorModel)
        model = None if vector else self.models.find(joined.model_sha256)
        reply = self._work(request, joined, model, envelope, state)
        return self._settle(request, joined, digest, reply)

    def _joined(self, request: Request) -> JoinedRun:
        """The run of a request that is really for this device.

        Raises:
            DecodeError: another client's task, or a run this device was never told of.
        """
        if isinstance(request, ProfileRequest):
            return self.runs.join(request)
        if request.client != self._name:
            raise DecodeError(
                f"client {self._name}", expected="a task for this client", got=f"one for {request.client}"
            )
        joined = self.runs.get(request.run)
        if joined is None:
            raise DecodeError(
                f"client {self._name}",
                expected=NOT_JOINED,
                got=f"run {request.run}",
                hint="The server must send a profile request with the federation's settings first.",
            )
        self.runs.use(joined)
        return joined

    def _work(
        self, request: Request, joined: JoinedRun, model: Path | None, envelope: bytes, state: bytes
    ) -> bytes:
        """Have the worker answer. If it dies, once more; what it cannot do is a failure by name."""
        for last in (False, True):
            clock = _Clock(self)
            try:
                return self._worker.answer(joined, model, envelope, state, clock.tick)
            except _OutOfTime as error:
                return self._failure(request, str(error))
            except WorkerDied as error:
                self._say(f"{error}; {'giving this task up' if last else 'starting another one'}")
                if last:
                    return self._failure(request, str(error))
            except TrainingError as error:
                self._tell()
                return self._failure(request, str(error))
            finally:
                clock.stop()
        raise AssertionError

    def _settle(self, request: Request, joined: JoinedRun, digest: str, data: bytes) -> bytes:
        """Keep what must be kept of the worker's reply, before it leaves."""
        reply = decode_reply(data, max_bytes=len(data))
        if isinstance(reply, ClientProfile):
            joined = self.runs.learn(joined, reply.train_examples)
            usage, now = self.usage.today(self._now()), self._now()
            reason = self.policy.check(request, joined.settings, usage, now, examples=joined.examples)
            if reason is not None:  # the owner's number of examples decides it
                return self._failure(request, reason)
        elif isinstance(reply, EncodedUpdate):
            try:
                self.outbox.put(digest, data)
            except StorageError as error:  # it can still leave; only a repeat would have to train again
                self._say(str(error))
        elif isinstance(reply, ClientFailure):
            self._say(f"{_what(request)}: {reply.reason}")
        self._tell()
        return data

    def _tell(self) -> None:
        """What the worker has for the owner only; the same sentence once."""
        if self._worker.notice and self._worker.notice != self._told:
            self._say(self._worker.notice)
        self._told = self._worker.notice

    def _failure(self, request: Request | None, reason: str) -> bytes:
        self._say(f"{_what(request)}: refused: {reason}")
        number = 0 if request is None or isinstance(request, ProfileRequest) else request.round
        run = "" if request is None else request.run
        return encode_reply(ClientFailure(self._name, number, reason, run))

    def _add(self, *, bytes: int = 0, work_s: float = 0.0) -> None:
        try:
            self.usage.add(self._now(), bytes=bytes, work_s=work_s)
        except StorageError as error:
            self._say(str(error))


class _OutOfTime(Exception):
    """The owner's hours or work for today ended in the middle of a task."""


class _Clock:
    """Watches one task: counts its seconds, ends it when the owner's rule or the agent's end says so."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        usage, now = desk.usage.today(desk._now()), desk._now()
        self._left, self._rule = desk.policy.seconds_left(usage, now)
        self._started = self._counted = time.monotonic()

    def tick(self) -> None:
        """Called a few times a second."""
        if self._desk._should_stop():
            raise OwnerStops
        now = time.monotonic()
        if now - self._started > self._left:
            raise _OutOfTime(self._rule)
        if now - self._counted >= WORK_STEP_S:
            self.stop()

    def stop(self) -> None:
        """Count what is not counted yet."""
        now = time.monotonic()
        self._desk._add(work_s=now - self._counted)
        self._counted = now


def _what(request: Request | None) -> str:
    if request is None:
        return "a message"
    if isinstance(request, ProfileRequest):
        return f"run {request.run}: profile"
    kind = "train" if isinstance(request, TrainRequest) else "evaluate"
    return f"run {request.run} round {request.round}: {kind}"
