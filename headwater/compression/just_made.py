"""What the last payload that this process encoded decodes to: :func:`remember`, :func:`decode_once`.

A simulation's server folds an update in the process that has just encoded it. With error feedback its client
has made the values that arrive, too (:meth:`.Codec.round_trip`, bit for bit those of :meth:`.Codec.decode`):
the server need not make them again. Only sparse values are remembered, and one payload: this holds no
dense state in memory. A payload counts as that one by its bytes, all of them.
"""

from __future__ import annotations

from headwater.compression.codec import Codec
from headwater.compression.table import CODEC_IDS
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, SparseState, StateSpec

_last: tuple[Payload, SparseState] | None = None


def remember(payload: Payload, values: AdapterState) -> None:
    """Note that ``payload`` decodes to ``values``; what nobody else may change.

    Args:
        payload: of a codec whose ``decode`` depends on nothing but the payload and the spec.
        values: what it decodes to.
    """
    global _last
    if isinstance(values, SparseState) and payload.codec in CODEC_IDS:
        _last = payload, values


def decode_once(codec: Codec, payload: Payload, spec: StateSpec) -> AdapterState:
    """``codec.decode(payload, spec)``, or what is remembered of the same payload.

    Raises:
        DecodeError: as :meth:`.Codec.decode`.
    """
    last = _last
    if last is not None and payload.codec == codec.id and last[0] == payload and last[1].spec == spec:
        return last[1]
    return codec.decode(payload, spec)
