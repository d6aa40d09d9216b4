"""Plans and devices as JSON: :func:`plan_to_json`, :func:`device_to_json` and their inverses.

What is absent in a plan is absent in its JSON. What is read comes from elsewhere and is checked
field by field.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headwater.config.codec import Codec
from headwater.config.settings import by_kind
from headwater.config.training import Training
from headwater.errors import DecodeError
from headwater.protocol.messages import ClientPlan, DeviceProfile, FisherPlan, MethodCost
from headwater.seeds.coefficients import SeedPlan
from headwater.seeds.draw_weights import odds_bytes

MAX_DEVICE = 32 * 1024
"""Bytes of a device's JSON."""
MAX_METHODS = 64
MAX_SEEDS = 2**26
"""Seeds, and coefficients, of one plan."""
MAX_TENSOR_NAME = 512
_MAX_BYTES = 2**60
_MAX_NUMBER = 2**32
_LEAST_S, _MOST_S = 1e-9, 1e9
_MAX_REAL = 1e30

_TRAINING: TypeAdapter[Training] = TypeAdapter(Training)
_CODEC: TypeAdapter[Codec] = TypeAdapter(Codec)
_MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    ValidationError,
)


def plan_to_json(plan: ClientPlan) -> str:
    """The plan as canonical JSON."""
    content: dict[str, object] = {
        "training": plan.training.plan_dump(),
        "codec": plan.codec.plan_dump(),
        "learning_rate_factor": plan.learning_rate_factor,
    }
    if plan.clip_l2 is not None:
        content["clip_l2"] = plan.clip_l2
    if plan.fisher is not None:
        content["fisher"] = {"examples": plan.fisher.examples, "cap": plan.fisher.cap}
    if plan.seeds is not None:
        seeds = plan.seeds
        content["seeds"] = {
            "first": seeds.first,
            "count": seeds.count,
            "distribution": seeds.distribution,
            "unit_bits": seeds.unit_bits,
            "entries": seeds.entries,
        } | ({"implied": True} if seeds.implied else {})
        if seeds.odds:
            content["odds"] = b64encode(seeds.odds).decode("ascii")
    if plan.tensors is not None:
        content["tensors"] = _front_coded(plan.tensors)
    if plan.rank is not None:
        content["rank"] = plan.rank
    if plan.method:
        content["method"] = plan.method
    if plan.control_bytes:
        content["control_bytes"] = plan.control_bytes
    if plan.rows is not None:
        content["rows"] = plan.rows
    return _canonical(content)


@lru_cache(maxsize=64)
def plan_from_json(text: str) -> ClientPlan:
    """The inverse of :func:`plan_to_json`.

    Raises:
        DecodeError: not a plan, or a field out of range.
    """
    try:
        content = json.loads(text)
        fisher, seeds = content.pop("fisher", None), content.pop("seeds", None)
        odds = content.pop("odds", None)
        clip_l2, factor = content.pop("clip_l2", None), content.pop("learning_rate_factor")
        tensors, rank = content.pop("tensors", None), content.pop("rank", None)
        control, rows = content.pop("control_bytes", None), content.pop("rows", None)
        plan = ClientPlan(
            training=_TRAINING.validate_json(json.dumps(content.pop("training"))),
            codec=_CODEC.validate_json(json.dumps(_with_first_format(content.pop("codec")))),
            learning_rate_factor=_real(factor, "learning_rate_factor", 0, 1),
            clip_l2=None if clip_l2 is None else _real(clip_l2, "clip_l2", 0, _MAX_REAL),
            fisher=None if fisher is None else _fisher(fisher),
            seeds=None if seeds is None else _seeds(seeds, odds),
            tensors=None if tensors is None else _front_decoded(tensors),
            rank=None if rank is None else _integer(rank, "rank", 1, _MAX_NUMBER),
            method=_text(content.pop("method"), "method", 64) if "method" in content else "",
            control_bytes=0 if control is None else _integer(control, "control_bytes", 1, _MAX_BYTES),
            rows=None if rows is None else _integer(rows, "rows", 1, _MAX_NUMBER),
        )
    except _MALFORMED as error:
        raise DecodeError("request.plan", expected="a client plan as JSON", got=str(error)[:200]) from None
    if content:
        raise DecodeError("request.plan", expected="no other keys", got=f"{sorted(content)[:3]}")
    return plan


def _with_first_format(codec: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the JSON has
    kind = by_kind(Codec).get(codec["kind"])
    return codec if kind is None else {**kind.first_format, **codec}


def device_to_json(device: DeviceProfile | None) -> str:
    """The device as canonical JSON; empty for None.

    Raises:
        DecodeError: more than :data:`MAX_DEVICE` bytes.
    """
    if device is None:
        return ""
    text = _canonical(_device(device))
    _require_short(text)
    return text


def device_from_json(text: str) -> DeviceProfile | None:
    """The inverse of :func:`device_to_json`.

    Raises:
        DecodeError: too long, not a device, or a field out of range.
    """
    if not text:
        return None
    _require_short(text)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("profile.device", expected="JSON", got=str(error)[:200]) from None
    return _to_device(content)


def _device(device: DeviceProfile) -> dict[str, Any]:
    costs = {
        name: {"peak_bytes": c.peak_bytes, "step_s": c.step_s, "batch_size": c.batch_size}
        for name, c in sorted(device.costs.items())
    }
    return {"memory_bytes": device.memory_bytes, "threads": device.threads, "costs": costs}


def _to_device(content: object) -> DeviceProfile:
    try:
        memory, threads, costs = _keys(content, "memory_bytes", "threads", "costs")
        if not isinstance(costs, dict) or len(costs) > MAX_METHODS:
            raise ValueError(f"costs: not a table of at most {MAX_METHODS} methods")
        return DeviceProfile(
            memory_bytes=_integer(memory, "memory_bytes", 0, _MAX_BYTES),
            threads=_integer(threads, "threads", 0, _MAX_NUMBER),
            costs={_text(name, "method", 64): _cost(cost) for name, cost in costs.items()},
        )
    except _MALFORMED as error:
        raise DecodeError("profile.device", expected="a device", got=str(error)[:200]) from None


def _cost(content: object) -> MethodCost:
    peak, seconds, batch = _keys(content, "peak_bytes", "step_s", "batch_size")
    if type(seconds) not in (int, float) or not (seconds == 0 or _LEAST_S <= seconds <= _MOST_S):
        raise ValueError(f"step_s: neither 0 nor a number from {_LEAST_S:g} to {_MOST_S:g}")
    return MethodCost(
        peak_bytes=_integer(peak, "peak_bytes", 0, _MAX_BYTES),
        step_s=float(seconds),
        batch_size=_integer(batch, "batch_size", 0, _MAX_NUMBER),
    )


def _fisher(content: object) -> FisherPlan:
    examples, cap = _keys(content, "examples", "cap")
    return FisherPlan(_integer(examples, "examples", 1, _MAX_NUMBER), _real(cap, "cap", 1, _MAX_REAL))


def _seeds(content: Mapping[str, Any], odds: object) -> SeedPlan:
    implied = content.pop("implied", False) if isinstance(content, dict) else False
    first, count, distribution, unit_bits, entries = _keys(
        content, "first", "count", "distribution", "unit_bits", "entries"
    )
    if distribution not in ("rademacher", "gaussian") or type(implied) is not bool:
        raise ValueError(f"seeds: distribution {distribution!r}, implied {implied!r}"[:100])
    count = _integer(count, "count", 1, MAX_SEEDS)
    drawn = b64decode(odds, validate=True) if isinstance(odds, str) else b""
    if odds is not None and len(drawn) != odds_bytes(count):
        raise ValueError(f"odds: {len(drawn)} bytes for {count} seeds")
    return SeedPlan(
        first=_integer(first, "first", 0, 2**62),
        count=count,
        distribution=distribution,
        unit_bits=_integer(unit_bits, "unit_bits", -100, 100),
        entries=_integer(entries, "entries", 1, MAX_SEEDS),
        implied=implied,
        odds=drawn,
    )


def _front_coded(names: Sequence[str]) -> list[int | str]:
    """[shared, rest, shared, rest, …]: how much of the name before is kept, and what follows it."""
    out: list[int | str] = []
    before = ""
    for name in names:
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, name, strict=False)))
        out += [shared, name[shared:]]
        before = name
    return out


def _front_decoded(content: object) -> tuple[str, ...]:
    if not isinstance(content, list) or len(content) % 2:
        raise TypeError("tensors: not a list of pairs")
    names, before = [], ""
    for shared, rest in zip(content[::2], content[1::2], strict=True):
        before = before[: _integer(shared, "tensors", 0, len(before))] + rest
        names.append(_text(before, "tensors", MAX_TENSOR_NAME))
    if len(set(names)) != len(names):
        raise ValueError("tensors: a name twice")
    return tuple(names)


def _keys(content: object, *names: str) -> list[Any]:
    """The values of exactly these keys."""
    if not isinstance(content, dict) or content.keys() != set(names):
        raise TypeError(f"not a table of {', '.join(names)}")
    return [content[name] for name in names]


def _real(value: object, what: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{what}: not a number from {least:g} to {most:g} but {value!r}"[:100])
    return float(value)


def _integer(value: object, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:  # True is an int to isinstance
        raise ValueError(f"{what}: not an integer from {least} to {most} but {value!r}"[:100])
    return value


def _text(value: object, what: str, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise ValueError(f"{what}: not 1 to {longest} printable characters but {value!r}"[:100])
    return value


def _require_short(text: str) -> None:
    if len(text.encode()) > MAX_DEVICE:
        raise DecodeError(
            "profile.device", expected=f"at most {MAX_DEVICE} bytes", got=f"{len(text.encode())}"
        )


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
