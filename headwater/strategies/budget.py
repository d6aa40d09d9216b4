"""Codecs within a client's byte budget: :func:`codec_within`, :func:`codec_for_link`."""

from __future__ import annotations

from collections.abc import Collection

from headwater.compression.gaps import most_gap_bytes
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.seed_update import scalars_max_bytes
from headwater.compression.table import codec_for
from headwater.config.codec import Codec, CompeftCodec
from headwater.errors import ConfigError
from headwater.seeds.coefficients import SeedPlan
from headwater.state import StateSpec

ENVELOPE_BYTES = 512
"""What a signed update has besides its values: names, hashes, metrics, signature."""
_STEP = 2.0**-20
_LEAST = 64
"""Of ``codec.up.budget_bytes``."""


def codec_within(
    codec: Codec, spec: StateSpec, most: int, who: str, *, seeds: SeedPlan | None, fisher: bool = False
) -> Codec:
    """``codec``, with the largest density at which no update is longer than ``most`` bytes.

    Args:
        codec: the federation's.
        spec: of the tensors that the client trains.
        most: the whole update's bytes.
        who: whose budget it is, for the error.
        seeds: for a method that sends scalars: which; its size does not depend on the codec.
        fisher: whether a Fisher travels too.

    Raises:
        ConfigError: nothing fits.
    """
    room = most - ENVELOPE_BYTES - (LogQuantCodec().max_bytes(spec) if fisher else 0)
    if seeds is not None:
        least, hint = scalars_max_bytes(seeds), "Fewer steps send fewer coefficients."
        if least <= room:
            return codec
    elif isinstance(codec, CompeftCodec) and codec.budget_bytes is not None:
        if codec.budget_bytes <= room:
            return codec
        least, hint = _LEAST, "Raise the budget."
        if least <= room:
            return codec.model_copy(update={"budget_bytes": room})
    else:
        least = _most(codec, spec)
        hint = 'Of codecs with a `density`, such as "compeft", a budget lowers it; not with `shared`.'
        if least <= room:
            return codec
        if codec.keeps is not None:
            least, hint = _most(codec.keeping(_STEP), spec), "Train fewer tensors, or raise the budget."
            if least <= room:
                low, high = 1, int(codec.keeps / _STEP)
                while high - low > 1:  # monotone: more values are kept
                    middle = (low + high) // 2
                    fits = _most(codec.keeping(middle * _STEP), spec) <= room
                    low, high = (middle, high) if fits else (low, middle)
                return codec.keeping(low * _STEP)
    raise ConfigError(
        f"{who}.max_bytes_up", expected=f"at least {most - room + least} bytes", got=str(most), hint=hint
    )


def codec_of_client(codec: Codec, spec: StateSpec, reads: Collection[str], who: str) -> Codec:
    """``codec`` as a client is asked for it; one that knows no densities by worth keeps the budget by one.

    Args:
        codec: the federation's.
        spec: of the tensors that the client trains.
        reads: the ids of the codecs that it knows.
        who: whose budget it is, for the error.

    Raises:
        ConfigError: nothing fits.
    """
    told, budget = codec.written_by(reads), getattr(codec, "budget_bytes", None)
    if budget is None or told is codec:
        return told
    return codec_within(told, spec, budget + ENVELOPE_BYTES, who, seeds=None)


def codec_for_link(codec: Codec, spec: StateSpec, most: int) -> Codec:
    """``codec``, with a density of each tensor's own, so that an update is no longer than its link carries.

    Below what the codec's own density may take at worst, or its own ``budget_bytes``; never less than the
    smallest density takes. Other codecs than ``compeft.v2`` stay as they are.

    Args:
        codec: as the client is asked for it otherwise.
        spec: of the tensors that it trains.
        most: the whole update's bytes.
    """
    if not isinstance(codec, CompeftCodec) or codec.format == 1:
        return codec
    room = max(_LEAST, most_gap_bytes(spec, _STEP), most - ENVELOPE_BYTES)
    if room >= (codec.budget_bytes or _most(codec, spec)):
        return codec
    return codec.model_copy(update={"budget_bytes": room, "density_over": "tensor"})


def _most(codec: Codec, spec: StateSpec) -> int:
    return codec_for(codec).most_encoded(spec)
