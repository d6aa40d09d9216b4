"""Codec: the interface of everything that turns a state into bytes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec


class Codec(ABC):
    """Values to bytes and back.

    Laws (``tests/laws/codec_laws.py``): decode(encode(x)) has x's spec; encode is a function of (x,
    key); encode(decode(encode(x))) decodes to the same values; round_trip is encode, then decode; any bytes
    decode to a state or raise ``DecodeError``, in memory bounded by the spec; no body is longer than
    ``max_bytes(spec)``, and none that ``encode`` makes longer than ``most_encoded(spec)``.
    """

    id: str
    """Stable id of the wire format, such as ``compeft.v1``: a change of format changes it."""

    @abstractmethod
    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``. Non-finite values raise ``TrainingError``."""

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """:meth:`encode`, and the values that :meth:`decode` makes of its payload, bit for bit.

        Error feedback needs both. A codec that knows the values without decoding overrides it.
        """
        payload = self.encode(state, key=key)
        return payload, self.decode(payload, state.spec)

    @abstractmethod
    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state in ``payload``, of the receiver's ``spec`` whatever the bytes claim.

        Raises:
            DecodeError: another codec's payload, wrong length, impossible counts, non-finite values.
        """

    @abstractmethod
    def max_bytes(self, spec: StateSpec) -> int:
        """No body for ``spec`` is longer, whatever its sender's settings; longer ones are refused unread."""

    def most_encoded(self, spec: StateSpec) -> int:
        """No body that :meth:`encode` makes for ``spec`` with these settings is longer, whatever the values.

        A byte budget rests on it. A codec that sends only a part of the values overrides it; it must not
        shrink as that part grows.
        """
        return self.max_bytes(spec)
