"""TaskHandler: what a device does with one delivery: read it, ask the policy, have it worked for, sign.

Whatever comes in, what goes out is a signed reply: an answer, or the code of the reason why there is none.
The reason's own text, which may have paths and rows in it, is for the owner's log: it stays here.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.known_runs import KnownRun, KnownRuns
from headwater.client.agent.models import LocalModels
from headwater.client.agent.outbox import Outbox, request_digest
from headwater.client.agent.setbacks import NotDone, Setbacks
from headwater.client.agent.task_clock import DEVICE, AgentStopping, Clocks, TaskClock
from headwater.client.agent.worker import WorkerDied
from headwater.client.masking.masked_sums import MaskedSums
from headwater.client.policy import Policy
from headwater.client.usage import Usage
from headwater.config.agent import AgentSettings
from headwater.config.model import VectorModel
from headwater.errors import DecodeError, HeadwaterError, StorageError
from headwater.proto.wire import (
    decode_reply,
    decode_request,
    decode_signed,
    encode_reply,
    encode_request,
    encode_signed,
)
from headwater.protocol.failures import Failure, FailureCode, coded, failure_of
from headwater.protocol.messages import (
    WITHHELD,
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    MaskReply,
    MaskRequest,
    MaskStep,
    ProfileRequest,
    Request,
    TrainRequest,
)
from headwater.receipts.sent import SENT, SentLog

RECHECK_S = 5.0
"""Between two looks whether a problem is mended."""


class WorkerProtocol(Protocol):
    """A :class:`Worker`, or a test's stand-in."""

    notice: str
    rows: RowsRead | None

    def answer(
        self,
        joined: KnownRun,
        model: Path | None,
        envelope: bytes,
        state: bytes,
        tick: Callable[[], None] = ...,
    ) -> bytes:
        """See :meth:`Worker.answer`."""

    def close(self) -> None:
        """See :meth:`Worker.close`."""


class TaskHandler:
    """Answers deliveries for one owner. One at a time.

    Args:
        settings: the owner's file.
        worker: who works.
        sign: the device's signature over a reply.
        say: takes a line for the owner's log.
        should_stop: whether to drop everything.
        clocks: the device's.
        masks: its part in masked sums; without, it trains for no run under masks.

    Attributes:
        setbacks: what could not be done, until it is mended.
    """

    def __init__(
        self,
        settings: AgentSettings,
        worker: WorkerProtocol,
        sign: Callable[[bytes], bytes],
        say: Callable[[str], None],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        clocks: Clocks = DEVICE,
        masks: MaskedSums | None = None,
    ) -> None:
        self.policy = Policy(settings.file.policy)
        self.usage = Usage(settings.state / "usage.json", say, now=clocks.now)
        self.runs = KnownRuns(settings.state / "runs")
        self.outbox = Outbox(settings.state / "outbox")
        models = settings.file.models
        self.models = LocalModels(settings.model_folders, models.allow, settings.state / "models.json")
        self._sent = SentLog(settings.state / SENT)
        self._name, self._worker, self._sign = settings.file.name, worker, sign
        self._masks = masks
        self._say, self._should_stop, self._now, self._clock = say, should_stop, clocks.now, clocks.elapsed
        self.setbacks = Setbacks(settings, self.models, say, clocks.now, clocks.elapsed)
        self._told, self._recheck_at_s, self._uncounted = "", 0.0, False

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
                    "message of the server",
                    expected="the parts envelope and state",
                    got=str(sorted(parts))[:80],
                )
            envelope, state = parts["envelope"], parts["state"]
            request = decode_request(envelope, state)
            reply = self._reply(request, envelope, state, size)
            self.setbacks.done(request, self.runs.runs())
        except AgentStopping:
            raise
        except NotDone as error:
            reply = self._failure(request, error.failure, error.text)
        except HeadwaterError as error:
            reply = self._failure(request, failure_of(error), str(error))
        except Exception as error:  # the server waits for something, and must not wait for ever
            fault = traceback.format_exc().replace("\n", " | ")
            reply = self._failure(request, failure_of(error), f"a fault in the agent: {fault}")
        self.count(size)
        signed = encode_signed(reply, self._sign(reply))
        if isinstance(request, TrainRequest | MaskRequest):
            self._remember(request, reply, signed)
        return signed

    def _remember(self, request: TrainRequest | MaskRequest, reply: bytes, signed: bytes) -> None:
        """Keep the hash of an update that leaves, masked or not, for the owner: :mod:`headwater.receipts`."""
        said = decode_reply(reply, max_bytes=len(reply))
        leaves = isinstance(said, EncodedUpdate) and said.delta.codec != WITHHELD
        if leaves or (isinstance(said, MaskReply) and said.step is MaskStep.VECTOR):
            try:
                self._sent.note(self._name, request.run, request.round, signed, time.time())
            except HeadwaterError as error:  # the update can leave; only its owner's proof of it lacks
                self._say(str(error))

    def instead_of(self, signed: bytes, status: int, reason: str) -> bytes | None:
        """The signed failure that takes the place of a reply which the server refuses.

        Args:
            signed: the reply.
            status: HTTP status of the server's answer.
            reason: its text.

        Returns:
            None if that reply was a failure itself: then there is nothing smaller to say.
        """
        reply = decode_reply(decode_signed(signed, max_bytes=len(signed))[0], max_bytes=len(signed))
        if isinstance(reply, ClientFailure):
            return None
        number = 0 if isinstance(reply, ClientProfile) else reply.round
        what = "profile" if isinstance(reply, ClientProfile) else f"round {number}"
        reason = f"the server refused the reply of {len(signed):,} bytes: {reason}"
        self._say(f"run {reply.run}: {what}: {reason}; the server is told so")
        refused = Failure(FailureCode.REPLY_REFUSED, (status, len(signed)))
        failure = encode_reply(ClientFailure.coded(self._name, number, refused, reply.run))
        return encode_signed(failure, self._sign(failure))

    def count(self, size: int) -> None:
        """Count the bytes of a message against the day."""
        self._add(bytes=size)

    @property
    def metered(self) -> bool:
        """Whether the owner pays for the connection."""
        return self.policy.settings.metered

    @property
    def rows(self) -> RowsRead | None:
        """The owner's rows that the worker has in memory."""
        return self._worker.rows

    def paused(self) -> str | None:
        """Why nothing should be fetched now, if so."""
        refusal = self.policy.exhausted(self.usage.today(self._now()))
        return None if refusal is None else refusal.text

    def rest(self) -> None:
        """Give the worker's memory back while the owner's hours are over."""
        if self.policy.asleep(self._now()):
            self._worker.close()

    def recheck(self, doing: Callable[[str], None] = lambda what: None) -> None:
        """Check whether a problem is over: the disk's, and, where files have changed, the data's.

        Args:
            doing: is told what the worker is busy with.
        """
        if self._clock() < self._recheck_at_s:
            return
        self._recheck_at_s = self._clock() + RECHECK_S
        self.setbacks.look_at_disk()
        now = self._now()
        if self.policy.asleep(now) or self.policy.exhausted(self.usage.today(now)):
            return
        for run in self.setbacks.worth_another_look():
            joined = self.runs.get(run)
            if joined is not None:
                doing(f"looks whether run {run} is mended")
                again = ProfileRequest(run, joined.federation, joined.model_sha256)
                self.answer(dict(zip(("envelope", "state"), encode_request(again), strict=True)))
                doing("idle")

    def _reply(self, request: Request, envelope: bytes, state: bytes, size: int) -> bytes:
        joined = self._joined(request)
        usage, now = self.usage.today(self._now()), self._now()
        refusal = self.policy.check(request, joined.settings, usage, now, size=size, examples=joined.examples)
        if refusal is not None:
            raise NotDone(refusal.failure, refusal.text)
        if isinstance(request, MaskRequest):
            return self._masking(joined).answer(request, joined)
        self.setbacks.require_no_pause(request)
        masks = self._masking(joined) if joined.settings.privacy.masks else None
        digest = request_digest(envelope, state)
        if isinstance(request, TrainRequest) and (known := self.outbox.get(digest)) is not None:
            kept = masks is None or masks.holds(joined, request.round)
            if kept:  # else what it speaks of is gone: it is trained again
                self._say(f"run {request.run} round {request.round}: answered again with the same bytes")
                return known
        if isinstance(request, TrainRequest):
            self.setbacks.require_room(request)
        vector = isinstance(joined.settings.model, VectorModel)
        model = None if vector else self.models.find(joined.model_sha256)
        reply = self._work(request, joined, model, envelope, state)
        return self._settle(request, joined, digest, reply)

    def _masking(self, joined: KnownRun) -> MaskedSums:
        """What takes part in masked sums.

        Raises:
            DecodeError: nothing here does.
        """
        if self._masks is None:
            error = DecodeError(f"run {joined.run}", expected="no masks here", got="privacy.masks")
            raise coded(error, FailureCode.MASKS_REFUSED)
        return self._masks

    def _joined(self, request: Request) -> KnownRun:
        """The run of a request that is really for this device.

        Raises:
            DecodeError: another client's task, or a run this device was never told of.
        """
        if isinstance(request, ProfileRequest):
            return self.runs.join(request)
        if request.client != self._name:
            error = DecodeError(
                f"client {self._name}", expected="a task for this client", got=f"one for {request.client}"
            )
            raise coded(error, FailureCode.NOT_FOR_THIS_CLIENT)
        joined = self.runs.get(request.run)
        if joined is None:
            error = DecodeError(
                f"client {self._name}",
                expected="a run that this device was told of",
                got=f"run {request.run}",
                hint="The server tells the device of the run with its next question.",
            )
            raise coded(error, FailureCode.UNKNOWN_RUN)
        self.runs.use(joined)
        return joined

    def _work(
        self, request: Request, joined: KnownRun, model: Path | None, envelope: bytes, state: bytes
    ) -> bytes:
        """Have the worker answer. If it dies, once more; what it cannot do is a failure by name."""
        for last in (False, True):
            left_s, rule = self.policy.seconds_left(self.usage.today(self._now()), self._now())
            clock = TaskClock(left_s, rule, self._should_stop, lambda seconds: self._add(work_s=seconds))
            try:
                return self._worker.answer(joined, model, envelope, state, clock.tick)
            except WorkerDied as error:
                self._say(f"{error}; {'giving this task up' if last else 'starting another one'}")
                if last:
                    raise
            finally:
                clock.stop()
                self._tell()
        raise AssertionError

    def _settle(self, request: Request, joined: KnownRun, digest: str, data: bytes) -> bytes:
        """Keep what must be kept of the worker's reply, before it leaves."""
        reply = decode_reply(data, max_bytes=len(data))
        if isinstance(reply, ClientProfile):
            if joined.examples not in (None, reply.train_examples):
                self._say(
                    f"run {request.run}: your data has {reply.train_examples} examples now, "
                    f"{joined.examples} before: the server counts on the new number from the next round on"
                )
            joined = self.runs.learn(joined, reply.train_examples)
            usage, now = self.usage.today(self._now()), self._now()
            refusal = self.policy.check(request, joined.settings, usage, now, examples=joined.examples)
            if refusal is not None:  # the owner's number of examples decides it
                raise NotDone(refusal.failure, refusal.text)
        elif isinstance(reply, EncodedUpdate):
            if joined.settings.privacy.masks:
                data = self._masking(joined).withhold(joined, reply)
            try:
                self.outbox.put(digest, data)
            except StorageError as error:  # it can still leave; only a repeat would have to train again
                self._say(str(error))
        elif isinstance(reply, ClientFailure):  # its text is the error's own: it goes no further
            raise NotDone(reply.failure, reply.reason)
        return data

    def _tell(self) -> None:
        """What the worker has for the owner only; the same sentence once."""
        if self._worker.notice and self._worker.notice != self._told:
            for line in self._worker.notice.splitlines():
                if line not in self._told.splitlines():
                    self._say(line)
        self._told = self._worker.notice

    def _failure(self, request: Request | None, failure: Failure, text: str) -> bytes:
        """The reply of a task that was not done. ``text`` is for the owner; the server gets the code."""
        number = 0 if request is None or isinstance(request, ProfileRequest) else request.round
        run = "" if request is None else request.run
        failure = self.setbacks.met(request, failure, text)
        return encode_reply(ClientFailure.coded(self._name, number, failure, run))

    def _add(self, *, bytes: int = 0, work_s: float = 0.0) -> None:
        try:
            self.usage.add(self._now(), bytes=bytes, work_s=work_s)
            self._uncounted = False
        except Exception as error:  # a count that cannot be kept holds no reply back
            if not self._uncounted:
                self._say(f"today's cost is counted in memory only, for it could not be written: {error}")
            self._uncounted = True
