"""LosslessCodec: every value exactly, in fewer bytes than fp32 has.

ZipNN's idea (Hershcovitch et al. 2024, arXiv 2411.05239): the exponents of trained values are few and
uneven, their mantissas are noise. The 32 bits of a value are turned so that the exponent fills a byte of its
own, and each of the four *planes* of bytes is entropy-coded where that is shorter: Gaussian values take
about 3.35 bytes. Ours differs in two points: +0 has a symbol of its own in the exponent plane (255, which
finite values never need) and no mantissa, so that a sparse state costs little; and the coder is the ANS
coder of :mod:`headwater.compression.entropy` in place of Huffman's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import Reader
from headwater.compression.codec import Codec
from headwater.compression.codecs import symbols as coding
from headwater.compression.compeft import groups
from headwater.compression.entropy import CHUNK, Block, Bytes, Symbols, pack, unpack_bytes
from headwater.compression.reader import flat_finite, open_payload
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

VERSION = 1
RAW, CODED = 0, 1
ZERO = 255
"""In the exponent plane: the value +0, of which nothing else travels."""

Words = npt.NDArray[np.uint32]


class LosslessCodec(Codec):
    """Byte planes of fp32: a value's exponent, then its mantissa and sign, three bytes from the top.

    Tensors of few values share a group (:func:`headwater.compression.compeft.groups`); each plane of each
    group is raw, or a histogram and its part of the one stream at the end.
    """

    id = "lossless.v1"

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        flat = flat_finite(state, self.id)
        body, blocks = bytearray([VERSION]), list[tuple[Symbols, Block]]()
        for group in groups(state.spec):
            for plane in _planes(np.concatenate([flat[t.name] for t in group]).view(np.uint32)):
                if (found := coding.shorter(plane, plane.size)) is not None:
                    first, block = found
                    body += bytes([CODED]) + coding.histogram_bytes(first, block)
                    blocks.append((plane - np.int32(first), block))
                else:
                    body += bytes([RAW]) + plane.astype(np.uint8).tobytes()
        return Payload(self.id, bytes(body) + pack(blocks))

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        planes: list[list[_Plane]] = []
        for group in groups(spec):
            count = sum(t.numel for t in group)
            exponents = _Plane.read(reader, count)
            count -= exponents.count_of(ZERO)
            planes.append([exponents, *(_Plane.read(reader, count) for _ in range(3))])
        coded = [plane for held in planes for plane in held if plane.block is not None]
        for plane, found in zip(
            coded, unpack_bytes(reader, [p.block for p in coded if p.block]), strict=True
        ):
            found += np.uint8(plane.first)
            plane.found = found
        tensors = {}
        for group, held in zip(groups(spec), planes, strict=True):
            values = torch.from_numpy(_values(held, reader).view(np.float32))
            for t, part in zip(group, values.split_with_sizes([t.numel for t in group]), strict=True):
                tensors[t.name] = part.reshape(t.shape)
        return AdapterState(spec, tensors)

    def max_bytes(self, spec: StateSpec) -> int:
        """All planes raw: one is coded only where that is shorter."""
        return 1 + 4 * len(groups(spec)) + 4 * spec.numel


class _Plane:
    """A plane of which the mode, and what belongs to it before the stream, is read."""

    def __init__(self, first: int, block: Block | None, found: Bytes) -> None:
        self.first, self.block, self.found = first, block, found

    @staticmethod
    def read(reader: Reader, count: int) -> _Plane:
        """The next plane of ``count`` bytes."""
        if reader.byte((RAW, CODED), "mode of a plane") == RAW:
            found = np.frombuffer(reader.take(count, "plane"), np.uint8)
            return _Plane(0, None, found)
        if not count:
            raise reader.fail("an empty plane raw", "coded")
        return _Plane(*coding.read_histogram(reader, count, 256), found=np.zeros(0, np.uint8))

    def count_of(self, symbol: int) -> int:
        """How often ``symbol`` occurs: known before the stream is read."""
        if self.block is None:
            return int(np.count_nonzero(self.found == symbol))
        at = symbol - self.first
        return self.block.counts[at] if at < len(self.block.counts) else 0


def _planes(words: Words) -> list[Symbols]:
    """The exponents of all values, and three bytes of each that is not +0."""
    exponents = (words >> 23 & 0xFF).astype(np.int32)
    exponents[words == 0] = ZERO
    some = words[words != 0]
    rest = some << 1 & 0xFFFFFF | some >> 31
    return [exponents, *((rest >> shift & 0xFF).astype(np.int32) for shift in (16, 8, 0))]


def _values(planes: list[_Plane], reader: Reader) -> Words:
    """The inverse of :func:`_planes`."""
    exponents, *bytes_ = (plane.found for plane in planes)
    words, begin = np.zeros(exponents.size, np.uint32), 0
    for start in range(0, exponents.size, CHUNK):
        part = exponents[start : start + CHUNK]
        some = part != ZERO
        end = begin + int(np.count_nonzero(some))
        rest: Words = np.zeros(end - begin, np.uint32)
        for plane in bytes_:
            rest = rest * np.uint32(256) | plane[begin:end].astype(np.uint32)
        rest = part[some].astype(np.uint32) << 23 | rest >> 1 | rest << 31
        if not rest.all():
            raise reader.fail(f"+0 as symbol {ZERO} of the exponent plane", "as an exponent and a mantissa")
        words[start : start + CHUNK][some] = rest
        begin = end
    return words
