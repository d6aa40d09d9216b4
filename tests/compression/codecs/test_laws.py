"""The laws of every codec of this room: a few examples of each here, many of each in ``make test-slow``."""

from __future__ import annotations

import pytest

from headwater.compression.codec import Codec
from headwater.compression.codecs.blockwise import BlockwiseCodec
from headwater.compression.codecs.by_module import ByModuleCodec
from headwater.compression.codecs.chain import ChainCodec
from headwater.compression.codecs.lossless import LosslessCodec
from headwater.compression.codecs.nnadq import NnadqCodec
from headwater.compression.codecs.places import Drawn, Largest
from headwater.compression.codecs.powersgd import PowersgdCodec
from headwater.compression.codecs.qsgd import QsgdCodec
from headwater.compression.codecs.randk import RandkCodec
from headwater.compression.codecs.sign import SignCodec, StcCodec
from headwater.compression.codecs.topk import SparseLocoCodec, TopkCodec
from headwater.protocol.messages import Payload
from tests.laws.codec_laws import CodecLaws

TOPK16, TOPK8, TOPK2 = TopkCodec(0.3, 16), TopkCodec(0.3, 8), TopkCodec(0.3, 2)
CANONICAL: list[Codec] = [
    LosslessCodec(),
    SignCodec(),
    StcCodec(0.2),
    TOPK16,
    TOPK2,
    SparseLocoCodec(0.1, 64),
]
PROJECTIONS: list[Codec] = [
    BlockwiseCodec("int8", 32), BlockwiseCodec("int4", 16), BlockwiseCodec("nf4"), TOPK8, *CANONICAL,
]  # fmt: skip
UNBIASED: list[Codec] = [QsgdCodec(3, 16), RandkCodec(0.3), RandkCodec(0.1, bytes(16))]
READABLE = {codec.id: codec for codec in (BlockwiseCodec("int8"), SignCodec(), QsgdCodec(3, 16))}
CHAIN = ChainCodec(Largest(0.3), BlockwiseCodec("int8", 16), READABLE)
DRAWN_CHAIN = ChainCodec(Drawn(0.3), QsgdCodec(3, 16), READABLE)
PARTS = READABLE | {codec.id: codec for codec in (TopkCodec(), PowersgdCodec(), CHAIN)}
BY_MODULE = ByModuleCodec([("t1", PARTS["sign.v1"]), ("t[23]", CHAIN), ("*", TOPK2)], PARTS)
NNADQ = NnadqCodec(1e-3, 0.4)
CONTRACTIVE: list[Codec] = [NNADQ, CHAIN, BY_MODULE, ChainCodec(Largest(0.2), SignCodec(), READABLE)]


class OneOf(Codec):
    """Each spec goes through one of several codecs, so that a suite's examples are dealt among them."""

    id = "one-of"

    def __init__(self, codecs):
        self._codecs = codecs

    def _of(self, spec):
        return self._codecs[int(spec.fingerprint(), 16) % len(self._codecs)]

    def encode(self, state, *, key):
        return Payload(self.id, self._of(state.spec).encode(state, key=key).body)

    def round_trip(self, state, *, key):
        payload, values = self._of(state.spec).round_trip(state, key=key)
        return Payload(self.id, payload.body), values

    def decode(self, payload, spec):
        id = self._of(spec).id if payload.codec == self.id else payload.codec
        return self._of(spec).decode(Payload(id, payload.body), spec)

    def max_bytes(self, spec):
        return self._of(spec).max_bytes(spec)

    def most_encoded(self, spec):
        return self._of(spec).most_encoded(spec)


class TestProjectionLaws(CodecLaws):
    codec, canonical = OneOf(PROJECTIONS), False


class TestCanonicalLaws(CodecLaws):
    codec = OneOf(CANONICAL)


class TestUnbiasedLaws(CodecLaws):
    codec, projects, contracts = OneOf([*UNBIASED, DRAWN_CHAIN]), False, False


class TestContractiveLaws(CodecLaws):
    codec, projects = OneOf(CONTRACTIVE), False


class TestPowersgdLaws(CodecLaws):
    codec, projects, keeps_zeros = PowersgdCodec(1), False, False


def laws_of(codec: Codec, **attributes: object) -> type:
    """The whole suite for one codec."""
    return pytest.mark.slow(type(f"Test{codec.id}Laws", (CodecLaws,), {"codec": codec, **attributes}))


TestLossless = laws_of(LosslessCodec(), lossy=False)
TestSign = laws_of(SignCodec())
TestStc = laws_of(StcCodec(0.2))
TestInt8 = laws_of(BlockwiseCodec("int8", 32), canonical=False)
TestInt4 = laws_of(BlockwiseCodec("int4", 16), canonical=False)
TestNf4 = laws_of(BlockwiseCodec("nf4"), canonical=False)
TestTopk16 = laws_of(TOPK16)
TestTopk8 = laws_of(TOPK8, canonical=False)
TestTopk2 = laws_of(TOPK2)
TestSparseLoco = laws_of(SparseLocoCodec(0.1, 64))
TestQsgd = laws_of(QsgdCodec(3, 16), projects=False, contracts=False)
TestRandk = laws_of(RandkCodec(0.3), projects=False, contracts=False)
TestNnadq = laws_of(NNADQ, projects=False)
TestChain = laws_of(CHAIN, projects=False)
TestDrawnChain = laws_of(DRAWN_CHAIN, projects=False, contracts=False)
TestByModule = laws_of(BY_MODULE, projects=False)
