"""Which codec is which: from the federation file (to encode) and from a stable id (to decode)."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.compression.codec import Codec
from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.logquant import LogQuantCodec
from headwater.config import federation
from headwater.errors import DecodeError

_BY_ID: Mapping[str, Codec] = {
    codec.id: codec for codec in (DenseCodec("fp32"), DenseCodec("bf16"), CompeftCodec(), LogQuantCodec())
}


def codec_for(settings: federation.Codec) -> Codec:
    """The codec that ``[codec]`` asks for."""
    if settings.kind == "dense":
        return DenseCodec(settings.dtype)
    return CompeftCodec(settings.density, settings.alpha)


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
