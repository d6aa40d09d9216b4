"""Codecs within a client's byte budget: :func:`codec_within`, :func:`codec_for_link`."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial

from headwater.compression.byte_reader import varint
from headwater.compression.compeft import groups
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.seed_update import scalars_max_bytes
from headwater.compression.table import codec_for
from headwater.compression.ternary import kept
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
    elif isinstance(codec, CompeftCodec):
        low, high = 1, int(codec.density / _STEP)
        over_all = codec.density_over == "all"
        most_bytes = partial(_most_gaps, over_all=over_all) if codec.format > 1 else _most
        if most_bytes(spec, codec.density) <= room:
            return codec
        if most_bytes(spec, _STEP) <= room:
            while high - low > 1:  # monotone: more values are kept
                middle = (low + high) // 2
                low, high = (middle, high) if most_bytes(spec, middle * _STEP) <= room else (low, middle)
            return codec.model_copy(update={"density": low * _STEP})
        least, hint = most_bytes(spec, _STEP), "Train fewer tensors, or raise the budget."
    else:
        least, hint = codec_for(codec).max_bytes(spec), 'A budget needs codec.up.kind = "compeft".'
        if least <= room:
            return codec
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
    room = max(_LEAST, _most_gaps(spec, _STEP), most - ENVELOPE_BYTES)
    over_all = codec.density_over == "all"
    if room >= (codec.budget_bytes or _most_gaps(spec, codec.density, over_all=over_all)):
        return codec
    return codec.model_copy(update={"budget_bytes": room, "density_over": "tensor"})


def _most(spec: StateSpec, density: float) -> int:
    """No body of ``compeft.v1`` at this density is longer.

    A block of N symbols, K of them not zero, codes in at most z·log2(N/z) + K·log2(2N/K) bits, z = N − K:
    signs in equal parts are the worst case. The coder adds 9e-8 bits a symbol for each of three symbols
    of the alphabet (``entropy.weights``) and its last state.
    """
    size, bits = 1 + 4 * len(spec) + 12, 0.0
    for group in groups(spec):
        total = sum(t.numel for t in group)
        some = min(sum(kept(t.numel, density) for t in group), 2 * total / 3)  # beyond it, 1.585 bits each
        size += 2 * len(varint(total))
        bits += total * 27e-8 + (total - some) * math.log2(total / (total - some))
        bits += some * math.log2(2 * total / some)
    return size + math.ceil(bits / 8)


def _most_gaps(spec: StateSpec, density: float, *, over_all: bool = False) -> int:
    """No body of ``compeft.v2`` at this density is longer.

    Gaps cost what positions do in ``compeft.v1``, and more where all their lowest bits are zeros, which the
    model thinks as likely as others: log2(x / (1 − e^−x)) < 0.18 bits, x = n·2^s/N ≤ 1/4 (``gaps``).
    The cost is concave in n: of a density over all tensors, equal ones are the worst case.
    """
    size, bits, met = 16 + len(varint(len(spec))), 0.0, set[int]()
    for t in spec:
        count = max(density, 1 / spec.numel) * t.numel if over_all else kept(t.numel, density)
        some = min(count, 2 * t.numel / 3)
        size += 2 * len(varint(t.numel)) + (len(varint(len(spec))) if t.numel in met else 0)
        met.add(t.numel)
        bits += 31 + (t.numel - some) * math.log2(t.numel / (t.numel - some))
        bits += some * (0.18 + math.log2(2 * t.numel / some))
    return size + math.ceil(bits / 8)
