"""ByModuleCodec: a codec of its own for each part of an adapter.

GraftLLM (Du et al. 2025, arXiv 2505.18502) compresses the change of each kind of module by what it bears:
some by pruning, some by low rank, some by coarser numbers. Here the federation says which goes by which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from headwater.compression.byte_reader import varint
from headwater.compression.codec import Codec
from headwater.compression.codecs.chain import name_bytes
from headwater.compression.reader import open_payload
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

VERSION = 1


class ByModuleCodec(Codec):
    """The ids of the parts, whose each tensor is, and a body a part.

    Args:
        parts: patterns of tensors' names, each with its codec; the first that fits counts, and ``*`` is last.
        readable: every codec that a part may have, by id. Decoding needs nothing else.
    """

    id = "by-module.v1"

    def __init__(self, parts: Sequence[tuple[str, Codec]], readable: Mapping[str, Codec]) -> None:
        self._parts, self._readable = tuple(parts), readable
        self._most: dict[str, int] = {}

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``."""
        return self.round_trip(state, key=key)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and what it decodes to."""
        whose = [self._part_of(t.name) for t in state.spec]
        used = list(dict.fromkeys(whose))  # in the order in which tensors name them
        head, bodies = bytearray([VERSION]) + varint(len(used)), bytearray()
        sent = dict[str, Tensor]()
        for part in used:
            names = [t.name for t, mine in zip(state.spec, whose, strict=True) if mine == part]
            own = AdapterState(state.spec.only(names), {name: state[name] for name in names})
            payload, values = self._parts[part][1].round_trip(own, key=key.child("part", part))
            head += name_bytes(payload.codec)
            bodies += varint(len(payload.body)) + payload.body
            sent.update(values)
        head += b"".join(varint(used.index(part)) for part in whose)
        return Payload(self.id, bytes(head + bodies)), AdapterState(state.spec, sent)

    def _part_of(self, name: str) -> int:
        return next(i for i, (pattern, _) in enumerate(self._parts) if fnmatchcase(name, pattern))

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        codecs, whose, tensors = list[Codec](), list[int](), dict[str, Tensor]()
        for _ in range(reader.varint(len(spec), "number of parts")):
            length = reader.byte(tuple(range(1, 65)), "length of an id")
            id = reader.take(length, "id").decode("ascii", "replace")
            if id not in self._readable:
                raise reader.fail(f"a codec out of {', '.join(sorted(self._readable))}", repr(id)[:80])
            codecs.append(self._readable[id])
        for t in spec:
            part = reader.varint(len(codecs), f"part of {t.name}")
            if part > len(set(whose)) or part == len(codecs):
                raise reader.fail(f"part of {t.name}: one named before, or the next", str(part))
            whose.append(part)
        if len(set(whose)) != len(codecs):
            raise reader.fail("a tensor for every part", "none")
        for part, codec in enumerate(codecs):
            own = spec.only(t.name for t, mine in zip(spec, whose, strict=True) if mine == part)
            body = reader.take(reader.varint(codec.max_bytes(own), "bytes of a part"), "part")
            tensors.update(codec.decode(Payload(codec.id, body), own))
        reader.end()
        return AdapterState(spec, tensors)

    def most_encoded(self, spec: StateSpec) -> int:
        """As its parts, each of the tensors that are its own."""
        own = dict[int, list[str]]()
        for t in spec:
            own.setdefault(self._part_of(t.name), []).append(t.name)
        found = 1 + len(varint(len(own))) + len(spec) * len(varint(len(own)))
        for part, names in own.items():
            most = self._parts[part][1].most_encoded(spec.only(names))
            found += len(name_bytes(self._parts[part][1].id)) + len(varint(most)) + most
        return found

    def max_bytes(self, spec: StateSpec) -> int:
        """Each tensor a part of its own, by the codec that may take the most."""
        if (found := self._most.get(spec.fingerprint())) is None:
            found = 1 + len(varint(len(spec)))
            for t in spec:
                own = StateSpec.of([t])
                most = max(codec.max_bytes(own) for codec in self._readable.values())
                found += 1 + 64 + 2 * len(varint(len(spec))) + len(varint(most)) + most
            self._most = {spec.fingerprint(): found}
        return found
