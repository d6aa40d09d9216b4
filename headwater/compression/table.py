"""Which codec is which: from the federation file (to encode) and from a stable id (to decode)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headwater.compression.codec import Codec
from headwater.compression.codecs.blockwise import BlockwiseCodec
from headwater.compression.codecs.lossless import LosslessCodec
from headwater.compression.codecs.qsgd import QsgdCodec
from headwater.compression.codecs.randk import RandkCodec
from headwater.compression.codecs.sign import SignCodec, StcCodec
from headwater.compression.codecs.topk import SparseLocoCodec, TopkCodec
from headwater.compression.compeft import CompeftCodec
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.logquant import LogQuantCodec
from headwater.config import codec as settings_of
from headwater.config.plugins import implementation
from headwater.config.settings import Settings
from headwater.errors import DecodeError

_BY_ID: Mapping[str, Codec] = {
    codec.id: codec
    for codec in (
        DenseCodec("fp32"), DenseCodec("bf16"), DenseCodec("fp16"), LosslessCodec(), CompeftCodec(),
        CompeftGapsCodec(),
        StcCodec(), SignCodec(), BlockwiseCodec("int8"), BlockwiseCodec("int4"), BlockwiseCodec("nf4"),
        TopkCodec(), SparseLocoCodec(), QsgdCodec(), RandkCodec(), LogQuantCodec(),
    )
}  # fmt: skip

CODEC_IDS = frozenset(_BY_ID)
"""The ids that :func:`codec_by_id` knows."""


CODECS: Mapping[type[Settings], Callable[[Any], Codec]] = {
    settings_of.DenseCodec: lambda settings: DenseCodec(settings.dtype),
    settings_of.LosslessCodec: lambda _: LosslessCodec(),
    settings_of.CompeftCodec: lambda settings: CompeftCodec(settings.density, settings.alpha),
    settings_of.StcCodec: lambda settings: StcCodec(settings.density),
    settings_of.SignCodec: lambda _: SignCodec(),
    settings_of.BlockCodec: lambda settings: BlockwiseCodec(settings.kind, settings.block),
    settings_of.TopkCodec: lambda settings: TopkCodec(settings.density, settings.bits),
    settings_of.SparseLocoCodec: lambda settings: SparseLocoCodec(settings.density, settings.chunk),
    settings_of.QsgdCodec: lambda settings: QsgdCodec(settings.levels, settings.bucket),
    settings_of.RandkCodec: lambda settings: RandkCodec(
        settings.density, None if settings.places is None else bytes.fromhex(settings.places)
    ),
}
"""What encodes as the settings of this class ask."""


def codec_for(settings: settings_of.Codec) -> Codec:
    """The codec that ``[codec]`` asks for.

    Raises:
        ConfigError: neither :data:`CODECS` nor an installed package has one for these settings.
    """
    made = CODECS.get(type(settings)) or implementation("codecs", settings)
    return made(settings)


def readable() -> tuple[str, ...]:
    """The ids that :func:`codec_by_id` knows, sorted."""
    return tuple(sorted(_BY_ID))


def codec_by_id(id: str) -> Codec:
    """The codec that reads payloads of ``id``; to encode, use :func:`codec_for`.

    Raises:
        DecodeError: no codec of this version has that id.
    """
    if id not in _BY_ID:
        raise DecodeError(
            "payload",
            expected=f"a codec out of {', '.join(sorted(_BY_ID))}",
            got=repr(id)[:80],
            hint="Update the older of the two sides.",
        )
    return _BY_ID[id]
