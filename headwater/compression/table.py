"""Which codec is which: from the federation file (to encode) and from a stable id (to decode)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headwater.compression.codec import Codec
from headwater.compression.codecs.blockwise import BlockwiseCodec
from headwater.compression.codecs.budget import BudgetCodec
from headwater.compression.codecs.by_module import ByModuleCodec
from headwater.compression.codecs.chain import ChainCodec
from headwater.compression.codecs.lossless import LosslessCodec
from headwater.compression.codecs.nnadq import NnadqCodec
from headwater.compression.codecs.places import Drawn, Largest, Selector
from headwater.compression.codecs.powersgd import PowersgdCodec
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


def _by_id(*codecs: Codec) -> dict[str, Codec]:
    return {codec.id: codec for codec in codecs}


_VALUES = _by_id(
    DenseCodec("fp32"), DenseCodec("bf16"), DenseCodec("fp16"), LosslessCodec(), SignCodec(), QsgdCodec(),
    BlockwiseCodec("int8"), BlockwiseCodec("int4"), BlockwiseCodec("nf4"), NnadqCodec(),
)  # fmt: skip
"""What may write the values that another codec chose."""
_ALONE = _VALUES | _by_id(
    CompeftCodec(),
    CompeftGapsCodec(),
    StcCodec(),
    TopkCodec(),
    SparseLocoCodec(),
    RandkCodec(),
    PowersgdCodec(),
)
_PARTS = _ALONE | _by_id(ChainCodec(Largest(1.0), DenseCodec("fp32"), _VALUES))
"""What a part of ``by-module`` may be: there is nothing deeper."""
_BY_ID: Mapping[str, Codec] = _PARTS | _by_id(ByModuleCodec([], _PARTS), LogQuantCodec())

CODEC_IDS = frozenset(_BY_ID)
"""The ids that :func:`codec_by_id` knows."""


CODECS: Mapping[type[Settings], Callable[[Any], Codec]] = {
    settings_of.DenseCodec: lambda settings: DenseCodec(settings.dtype),
    settings_of.LosslessCodec: lambda _: LosslessCodec(),
    settings_of.CompeftCodec: lambda settings: _compeft(settings),
    settings_of.StcCodec: lambda settings: StcCodec(settings.density),
    settings_of.SignCodec: lambda _: SignCodec(),
    settings_of.BlockCodec: lambda settings: BlockwiseCodec(settings.kind, settings.block),
    settings_of.TopkCodec: lambda settings: TopkCodec(settings.density, settings.bits),
    settings_of.SparseLocoCodec: lambda settings: SparseLocoCodec(settings.density, settings.chunk),
    settings_of.QsgdCodec: lambda settings: QsgdCodec(settings.levels, settings.bucket),
    settings_of.RandkCodec: lambda settings: RandkCodec(settings.density, _mask(settings)),
    settings_of.NnadqCodec: lambda settings: NnadqCodec(settings.sigma, settings.dropout),
    settings_of.PowersgdCodec: lambda settings: PowersgdCodec(settings.rank, settings.iterations),
    settings_of.ChainCodec: lambda settings: ChainCodec(
        _SELECTORS[type(settings.first)](settings.first), codec_for(settings.then), _VALUES
    ),
    settings_of.ByModuleCodec: lambda settings: ByModuleCodec(
        [(m.pattern, codec_for(m.codec)) for m in settings.modules] + [("*", codec_for(settings.otherwise))],
        _PARTS,
    ),
}
"""What encodes as the settings of this class ask."""


_SELECTORS: Mapping[type[Settings], Callable[[Any], Selector]] = {
    settings_of.LargestPlaces: lambda settings: Largest(settings.density),
    settings_of.DrawnPlaces: lambda settings: Drawn(settings.density, _mask(settings)),
}


def _mask(settings: settings_of.DrawnPlaces) -> bytes | None:
    return None if settings.places is None else bytes.fromhex(settings.places)


def _compeft(settings: settings_of.CompeftCodec) -> Codec:
    if settings.format == 1:
        return CompeftCodec(settings.density, settings.alpha)
    if settings.budget_bytes is None:
        over_all = settings.density_over == "all"
        return CompeftGapsCodec(settings.density, settings.alpha, settings.scale_bits, over_all=over_all)
    return BudgetCodec(CompeftGapsCodec(1.0, None, settings.scale_bits), settings.budget_bytes)


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
