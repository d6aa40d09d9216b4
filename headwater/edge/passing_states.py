"""PassingStates: the last global states that passed through an edge aggregator, for those made from them."""

from __future__ import annotations

from headwater.compression.codec import Codec
from headwater.compression.since import SINCE, add_up, name_of, read_since
from headwater.compression.table import codec_by_id
from headwater.errors import DecodeError
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, StateSpec

MOST = 3
"""States that are kept."""


class PassingStates:
    """As they came; decoded when they are needed: before a training nobody says of which spec they are."""

    def __init__(self) -> None:
        self._came: dict[str, tuple[Payload, str]] = {}  # by name, with their hashes
        self._decoded: dict[str, AdapterState] = {}

    def note(self, payload: Payload, sha256: str) -> None:
        """A state passes through: whole, or as what was added to another one."""
        name = name_of(sha256)
        came = self._came.pop(name, None)
        self._came[name] = (payload, sha256) if came is None or payload.codec != SINCE else came
        for old in list(self._came)[:-MOST]:
            del self._came[old]
        self._decoded = {name: state for name, state in self._decoded.items() if name in self._came}

    def state(self, payload: Payload, sha256: str, spec: StateSpec, down: Codec) -> AdapterState:
        """The state in ``payload``.

        Args:
            payload: as it came.
            sha256: of the state.
            spec: of the adapter.
            down: the codec of the federation's ``codec.down``.

        Raises:
            DecodeError: it is not that state; with the code NEEDS_FULL_STATE where its base is not here.
        """
        name = name_of(sha256)
        found = self._decoded.get(name) or self._made(payload, spec, down, MOST)
        if found.spec != spec or found.sha256() != sha256:
            raise DecodeError("group request", expected=f"state {sha256[:12]}", got="another")
        if name in self._came:
            self._decoded[name] = found
        return found

    def _made(self, payload: Payload, spec: StateSpec, down: Codec, depth: int) -> AdapterState:
        def codec_of(id: str) -> Codec:
            return down if down.id == id else codec_by_id(id)

        if payload.codec != SINCE:
            return codec_of(payload.codec).decode(payload, spec)
        base_name, increments = read_since(payload, spec)
        base, came = self._decoded.get(base_name), self._came.get(base_name)
        if base is None and came is not None and depth:
            base = self._made(came[0], spec, down, depth - 1)
        if base is None or name_of(base.sha256()) != base_name:
            error = DecodeError("group request", expected=f"to have state {base_name}", got="none")
            raise coded(error, FailureCode.NEEDS_FULL_STATE, 0)
        return add_up(base, increments, codec_of)
