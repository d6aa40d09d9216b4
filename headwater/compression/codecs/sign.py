"""SignCodec and StcCodec: signs with one magnitude, for every value or for the largest of all.

*EF-sign* (Karimireddy et al. 2019, arXiv 1901.09847): C(x) = (‖x‖₁/d)·sgn(x) for each tensor, about 1 bit a
value. ‖C(x) − x‖² = ‖x‖² − ‖x‖₁²/d, so that error feedback converges where plain signSGD need not.

*STC* (Sattler et al. 2019, arXiv 1903.02891, eq. 7–9): the n = max(1, ⌊k·N⌋) largest values of the whole
update become ±μ, μ their mean magnitude: one threshold and one scale for all tensors together.

Both are ``compeft.v1`` in other clothes and travel as its bytes. Zeros stay zeros (sgn(0) = 0), so d counts
the values that are not zero: what a client does not train costs next to nothing. The published coder of STC
is Golomb's, and its bit count charges one bit a value too many and no scale (add7dd8); ours is entropy-coded.
"""

from __future__ import annotations

from headwater.compression.codec import Codec
from headwater.compression.compeft import CompeftCodec
from headwater.compression.reader import flat_finite, open_payload
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec


class SignCodec(Codec):
    """EF-sign: per tensor the mean magnitude, and the sign of every value that is not 0."""

    id = "sign.v1"

    def __init__(self) -> None:
        self._ternary = CompeftCodec(1.0)

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        return self.round_trip(state, key=key)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values made of the symbols that were coded."""
        flat_finite(state, self.id)
        payload, sent = self._ternary.round_trip(state, key=key)
        return Payload(self.id, payload.body), sent

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; every body but a canonical one for ``spec`` is refused."""
        open_payload(payload, self, spec)
        return self._ternary.decode(Payload(self._ternary.id, payload.body), spec)

    def max_bytes(self, spec: StateSpec) -> int:
        """Of ``compeft.v1``."""
        return self._ternary.max_bytes(spec)


class StcCodec(Codec):
    """STC: the whole state as one ternary vector.

    Args:
        density: 0 < k ≤ 1, of all values.
    """

    id = "stc.v1"

    def __init__(self, density: float = 0.05) -> None:
        self._ternary = CompeftCodec(density)

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        return self.round_trip(state, key=key)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values made of the symbols that were coded."""
        flat_finite(state, self.id)
        whole = _whole(state.spec)
        payload, sent = self._ternary.round_trip(AdapterState.from_vector(whole, state.flat()), key=key)
        return Payload(self.id, payload.body), AdapterState.from_vector(state.spec, sent.flat())

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; every body but a canonical one for ``spec`` is refused."""
        open_payload(payload, self, spec)
        found = self._ternary.decode(Payload(self._ternary.id, payload.body), _whole(spec))
        return AdapterState.from_vector(spec, found.flat())

    def max_bytes(self, spec: StateSpec) -> int:
        """Of ``compeft.v1`` for one tensor."""
        return self._ternary.max_bytes(_whole(spec))

    def most_encoded(self, spec: StateSpec) -> int:
        """As ``compeft.v1`` at this density."""
        return self._ternary.most_encoded(_whole(spec))


def _whole(spec: StateSpec) -> StateSpec:
    return StateSpec.of([TensorSpec("state", (spec.numel,), "vector")])
