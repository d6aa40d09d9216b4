"""ChainCodec: one codec chooses which values travel, another writes them.

Top-k or Rand-k leave a vector of values of each tensor (:mod:`.places`); any codec of all values takes it
from there: signs, 8 or 4 bits, a random rounding. A sparsifier and a contractive quantiser are contractive
together (Qsparse-local-SGD, Basu et al. 2019, arXiv 1906.02367), and Rand-k with QSGD stays unbiased.
"""

from __future__ import annotations

from collections.abc import Mapping

from headwater.compression.codec import Codec
from headwater.compression.codecs.places import Drawn, Largest, Places, Selector
from headwater.compression.reader import diverged, flat_finite, open_payload
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

VERSION = 1
LARGEST, DRAWN = 0, 1


class ChainCodec(Codec):
    """Who chose, the places, the id of the codec of the values, and its body.

    Args:
        first: chooses; what it knows of places, such as their shared key, a reader holds bodies to.
        then: writes.
        readable: every codec whose body may follow, by id.
    """

    id = "chain.v1"

    def __init__(self, first: Selector, then: Codec, readable: Mapping[str, Codec]) -> None:
        self._first, self._then, self._readable = first, then, readable

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``."""
        return self.round_trip(state, key=key)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and what it decodes to."""
        flat = flat_finite(state, self.id)
        side, places = self._first.select(state.spec, flat, key)
        payload, values = self._then.round_trip(places.take(flat), key=key.child("then"))
        sent = places.put(self._first.arrives(places, values))
        if not sent.isfinite():
            raise diverged(
                f"values that {self.id} can multiply by the inverse of its density", f"{state.max_abs():.4g}"
            )
        who = bytes([VERSION, DRAWN if isinstance(self._first, Drawn) else LARGEST])
        return Payload(self.id, who + side + name_bytes(payload.codec) + payload.body), sent

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        drawn = reader.byte((LARGEST, DRAWN), "who chose the places") == DRAWN
        if not drawn and isinstance(self._first, Drawn) and self._first.mask is not None:
            raise reader.fail("the places that all clients of this round send", "others")
        first = (
            self._first if drawn == isinstance(self._first, Drawn) else Drawn(1.0) if drawn else Largest(1.0)
        )
        places: Places = first.read(reader, spec)
        id = reader.take(reader.byte(tuple(range(1, 65)), "length of an id"), "id").decode("ascii", "replace")
        if id not in self._readable:
            raise reader.fail(f"a codec of values out of {', '.join(sorted(self._readable))}", repr(id)[:80])
        values = self._readable[id].decode(Payload(id, reader.rest()), places.kept())
        sent = places.put(first.arrives(places, values))
        if not sent.isfinite():
            raise reader.fail("finite values once scaled", "infinite ones")
        return sent

    def max_bytes(self, spec: StateSpec) -> int:
        """All places kept, by the codec that may take the most."""
        everything = Largest(1.0).all_of(spec)
        places = max(Largest(1.0).most_bytes(spec), Drawn(1.0).most_bytes(spec))
        return 3 + 64 + places + max(codec.max_bytes(everything) for codec in self._readable.values())

    def most_encoded(self, spec: StateSpec) -> int:
        """So many places, and the longest body of their values."""
        counts = self._first.most_kept(spec)
        taken = StateSpec.of(TensorSpec(t.name, (n,), "vector") for t, n in zip(spec, counts, strict=True))
        # where fewer are not 0, tensors may share counts that otherwise have their own: one count more
        return 2 + self._first.most_selected(spec) + 1 + len(self._then.id) + self._then.max_bytes(taken) + 16


def name_bytes(id: str) -> bytes:
    """A codec's id as it travels: its length and its characters."""
    return bytes([len(id)]) + id.encode("ascii")
