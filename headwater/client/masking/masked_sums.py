"""MaskedSums: holds a trained vector back, and takes part in the sums of it, one step a message.

The keys of a sum live in this process only and for one attempt: an agent that starts again has dropped out of
it, and answers the next attempt with new ones. What outlives it is the vector, and what was told of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headwater.client.agent.known_runs import KEPT_RUNS, KnownRun
from headwater.client.masking.held_vector import HELD, HeldVector
from headwater.client.masking.memory_file import MemoryFile
from headwater.config.federation import Federation
from headwater.errors import DecodeError, HeadwaterError, StorageError, UpdateRejected
from headwater.files import write_atomically
from headwater.proto.mask_wire import StatedSum, decode_sum
from headwater.proto.wire import encode_reply
from headwater.protocol.failures import FailureCode, coded, reported_code
from headwater.protocol.messages import (
    WITHHELD,
    EncodedUpdate,
    MaskReply,
    MaskRequest,
    MaskStep,
    Payload,
)
from headwater.security.secagg import messages
from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import SumRound, task_of

MASKS = "masks"
"""In an agent's state: what it has told in masked rounds."""
_HELD = "masked.vector"


@dataclass
class _Session:
    """One attempt at one sum."""

    round: int
    attempt: bytes
    side: MaskingClient
    values: HeldVector
    names: int


class MaskedSums:
    """For one device.

    Args:
        name: that it is enrolled under.
        public: its signing key, as others know it.
        sign: signs a text of the protocol with it.
        folder: for what it must remember.
    """

    def __init__(self, name: str, public: bytes, sign: Callable[[bytes], bytes], folder: Path) -> None:
        self._name, self._public, self._sign = name, public, sign
        self._memory = MemoryFile(folder)
        self._sessions: dict[str, _Session] = {}

    def withhold(self, joined: KnownRun, reply: EncodedUpdate) -> bytes:
        """Keep an update's vector; what is told in its place has no value of it.

        Raises:
            DecodeError: there is no vector in it.
            StorageError: it cannot be kept.
        """
        if reply.delta.codec != HELD:
            raise DecodeError("worker", expected="an update as a vector to be masked", got=reply.delta.codec)
        vector = HeldVector.from_bytes(reply.delta.body)
        write_atomically(joined.folder / _HELD, reply.round.to_bytes(8, "big"), reply.delta.body)
        metrics = {name: value for name, value in reply.metrics.items() if name != "noise"}
        if joined.settings.privacy.shares:  # a loss is of the owner's rows, and has no noise
            metrics = {}
        return encode_reply(
            replace(reply, delta=Payload(WITHHELD, vector.common), statistics={}, metrics=metrics)
        )

    def holds(self, joined: KnownRun, round: int) -> bool:
        """Whether the vector of this round is here."""
        try:
            self._held(joined, round)
        except HeadwaterError:
            return False
        return True

    def answer(self, request: MaskRequest, joined: KnownRun) -> bytes:
        """The encoded reply to one step.

        Raises:
            UpdateRejected, DecodeError: the step is none that this device takes; the sum is over for it.
            StorageError: what it would tell cannot be kept.
        """
        try:
            content = self._answer(request, joined)
        except (UpdateRejected, DecodeError) as error:
            self._sessions.pop(request.run, None)
            if reported_code(error) is FailureCode.MASKS_TOO_FEW:
                raise
            raise coded(error, FailureCode.MASKS_REFUSED) from error
        return encode_reply(
            MaskReply(self._name, request.run, request.round, request.attempt, request.step, content)
        )

    def _answer(self, request: MaskRequest, joined: KnownRun) -> bytes:
        if request.step is MaskStep.KEYS:
            return self._begin(request, joined)
        session = self._sessions.get(request.run)
        if session is None or (session.round, session.attempt) != (request.round, request.attempt):
            raise UpdateRejected(
                f"masked sum of round {request.round}", expected="the attempt that this device has keys of",
                got="another", hint="The device was started again, or the server goes on with an old one.",
            )  # fmt: skip
        side, content = session.side, request.content
        match request.step:
            case MaskStep.SHARES:
                return messages.dump_rows(side.share(messages.load_group(content, most=session.names)))
            case MaskStep.VECTOR:
                delivery = messages.load_delivery(content, side.members)
                return side.mask(delivery, session.values.values)
            case MaskStep.LIST:
                return side.sign_list(messages.load_flags(content, side.members))
            case _:
                return messages.dump_reveal(side.reveal(messages.load_signatures(content, side.members)))

    def _begin(self, request: MaskRequest, joined: KnownRun) -> bytes:
        """The keys of a new attempt; those of the one before are gone."""
        stated, settings = decode_sum(request.content), joined.settings
        self._require_stated(stated, settings)
        vector = self._held(joined, request.round)
        if vector.plan not in stated.plans or len(stated.plans) > max(1, len(settings.methods)):
            raise self._refusal(request, "clients that were all asked the same as this one", "others")
        sum_round = SumRound(
            request.run, request.round, request.attempt, stated.names, stated.layout, stated.promise,
            task_of(vector.common, stated.plans), stated.exactly,
        )  # fmt: skip
        once = settings.privacy.shares
        side = MaskingClient(sum_round, self._name, self._sign, stated.enrolled, self._memory, once=once)
        self._sessions.pop(request.run, None)
        for oldest in list(self._sessions)[: 1 - KEPT_RUNS]:
            del self._sessions[oldest]
        session = _Session(request.round, request.attempt, side, vector, len(stated.names))
        self._sessions[request.run] = session
        return side.advertise().to_bytes()

    def _require_stated(self, stated: StatedSum, settings: Federation) -> None:
        """Refuse a sum that is weaker than the federation's file, as this device was told it.

        Raises:
            UpdateRejected: says what is.
        """
        privacy, promise = settings.privacy, stated.promise
        if not privacy.masks:
            raise UpdateRejected("masked sum", expected="a run under masks", got="one without")
        told = privacy.mask_dropouts, privacy.mask_colluding
        if (promise.dropouts, promise.colluding) != told:
            raise UpdateRejected(
                "masked sum", expected=f"mask_dropouts and mask_colluding {told}, as the file says",
                got=str((promise.dropouts, promise.colluding)),
            )  # fmt: skip
        if promise.least < (least := settings.cohort.min_clients):
            error = UpdateRejected(
                "masked sum", expected=f"at least {least} clients, cohort.min_clients of the file",
                got=str(promise.least),
            )  # fmt: skip
            raise coded(error, FailureCode.MASKS_TOO_FEW, least, max(0, promise.least))
        if stated.enrolled.get(self._name) != self._public:
            raise UpdateRejected("masked sum", expected="this device's name and key", got="others")

    def _held(self, joined: KnownRun, round: int) -> HeldVector:
        try:
            data = (joined.folder / _HELD).read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise StorageError(
                str(joined.folder / _HELD), expected="a readable file", got=error.strerror or str(error)
            ) from error
        if int.from_bytes(data[:8], "big") != round or not data:
            raise UpdateRejected(
                f"masked sum of round {round}",
                expected="a round that this device has trained in",
                got="another",
            )
        return HeldVector.from_bytes(data[8:])

    def _refusal(self, request: MaskRequest, expected: str, got: str) -> UpdateRejected:
        return UpdateRejected(f"masked sum of round {request.round}", expected=expected, got=got)
