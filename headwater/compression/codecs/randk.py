"""RandkCodec: values at places that a key draws, scaled so that the mean is right.

Rand-k (Konečný et al. 2016, arXiv 1610.05492): C(x) = (N/n)·x at n places drawn at random, 0 elsewhere.
E[C(x)] = x, and E‖C(x) − x‖² = (N/n − 1)·‖x‖². No position travels, only 16 bytes from which both draw them.

Where the plan gives all clients of a round the same 16 bytes, their payloads name the same places in the same
order: the sum of the values is the payload of the summed update. That is what masks can add up. The server
draws them from the federation's key and the round (:meth:`headwater.config.codec.RandkCodec.for_round`).
"""

from __future__ import annotations

from headwater.compression.codec import Codec
from headwater.compression.codecs.places import Drawn, Places
from headwater.compression.dense import DenseCodec
from headwater.compression.reader import diverged, flat_finite, open_payload
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

VERSION = 1


class RandkCodec(Codec):
    """The key of the places, how many each tensor has, and fp32 values.

    Args:
        density: 0 < k ≤ 1; n = max(1, ⌊k·N⌋) of each tensor. Decoding does not need it.
        mask: 16 bytes that draw the places; of the encoding's key if None. A reader that has them refuses
            other places.
    """

    id = "randk.v1"

    def __init__(self, density: float = 0.05, mask: bytes | None = None) -> None:
        self._places, self._values = Drawn(density, mask), DenseCodec("fp32")

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``, whose places come from ``key`` unless they are given."""
        flat = flat_finite(state, self.id)
        side, places = self._places.select(state.spec, flat, key)
        taken = places.take(flat)
        if not self._arrives(places, taken).isfinite():
            expected = f"values that {self.id} can multiply by the inverse of its density"
            raise diverged(expected, f"{state.max_abs():.4g}")
        return Payload(self.id, bytes([VERSION]) + side + self._values.encode(taken, key=key).body)

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        places = self._places.read(reader, spec)
        taken = self._values.decode(Payload(self._values.id, reader.rest()), places.kept())
        state = self._arrives(places, taken)
        if not state.isfinite():
            raise reader.fail("finite values once scaled", "infinite ones")
        return state

    def _arrives(self, places: Places, taken: AdapterState) -> AdapterState:
        """The scaled values in their places."""
        return places.put(self._places.arrives(places, taken))

    def max_bytes(self, spec: StateSpec) -> int:
        """Every value."""
        return 1 + self._places.most_bytes(spec) + 4 * spec.numel

    def most_encoded(self, spec: StateSpec) -> int:
        """Exactly what every encoding takes."""
        return 1 + self._places.most_selected(spec) + 4 * sum(self._places.most_kept(spec))
