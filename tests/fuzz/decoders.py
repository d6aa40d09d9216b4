"""Everything here that reads bytes of strangers, as functions of bytes alone: :func:`families`.

Formats that carry a checksum get the right one, so that bytes come behind it. The first byte of a codec's
input says which of :data:`SPECS` the receiver has.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwater.compression.codec import Codec
from headwater.compression.feedback import FeedbackState, compensate, sent
from headwater.compression.feedback_file import pending_round, read_state, to_pieces
from headwater.compression.seed_state import SEEDS, decode_sums, encode_sums
from headwater.compression.seed_update import SCALARS, decode_scalars, encode_scalars
from headwater.compression.since import SINCE, add_up, encode_since, name_of, read_since
from headwater.compression.table import CODEC_IDS, codec_by_id, codec_for
from headwater.config.codec import Codec as CodecKinds
from headwater.config.settings import by_kind
from headwater.errors import DecodeError, HeadwaterError, SpecMismatch, StorageError
from headwater.experts.compress import Compeft, Exact, compress
from headwater.experts.describe import describe
from headwater.experts.expert_file import open_adapter
from headwater.merging import FisherAggregator, MeanAggregator, MedianAggregator, TiesAggregator
from headwater.merging.accumulator_bytes import dump, load
from headwater.merging.merge_plan_json import merge_plan_from_json, merge_plan_to_json
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.plan import MergePlan
from headwater.merging.product_gap import GapSketch
from headwater.proto import group_wire, plan_json, wire
from headwater.protocol import messages
from headwater.protocol.failures import Failure, FailureCode
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.keys import Key
from headwater.server.storage.checkpoint import Checkpoint
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.experts import small
from tests.laws.aggregator_laws import state_of, update_of
from tests.server.storage.test_checkpoint import SPEC as KEPT
from tests.server.storage.test_checkpoint import checkpoint

SPECS = (
    StateSpec.of([TensorSpec("t", (1,), "vector")]),
    StateSpec.of([TensorSpec("a", (5, 4), "lora_a"), TensorSpec("b", (7,), "vector")]),
    StateSpec.of([TensorSpec("w", (3, 1000), "vector"), TensorSpec("x", (40, 30), "vector")]),
    StateSpec.of([TensorSpec(f"t{i}", (i + 1, 3), "vector") for i in range(40)]),
)
PAIR = StateSpec.of(
    [TensorSpec("q.A", (1, 2), "lora_a"), TensorSpec("q.B", (2, 1), "lora_b", pair="q.A", scaling=2.0)]
)
PLAN = MergePlan(PAIR, {"ada": 3, "bob": 1}, 4.0)
CHOICE = SeedPlan(first=10, count=200, distribution="rademacher", unit_bits=9, entries=60)
LIMIT = 400
"""Coefficients of a seeded state."""
LONGEST = 1 << 20


@dataclass(frozen=True)
class Family:
    """One reader of bytes.

    Args:
        name: for people and for the folder of its corpus.
        seeds: bytes that are right.
        read: reads, or raises one of ``refusals``; nothing else.
        refusals: what it may say of wrong bytes.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[HeadwaterError], ...] = (DecodeError,)

    def accepts(self, data: bytes) -> bool:
        """Whether the bytes were read; what is neither read nor refused is raised."""
        try:
            self.read(data)
        except self.refusals as error:
            assert len(str(error)) < 4000, "a refusal repeats the bytes"  # noqa: PT017 - of any refusal
            return False
        return True


def families() -> list[Family]:
    """All of them; a new codec of the table is among them by itself."""
    found = [_codec(id) for id in sorted(CODEC_IDS)]
    return [
        *found,
        _since(),
        *_coefficients(),
        *_envelopes(),
        *_plans(),
        *_sums(),
        _expert_file(),
        *_own_files(),
    ]


# --- payloads -----------------------------------------------------------------------------------------


def _states(spec: StateSpec) -> Iterator[AdapterState]:
    draw = torch.Generator().manual_seed(1)
    yield AdapterState.zeros(spec)
    for scale in (1.0, 1e-42, 1e30):
        yield AdapterState.from_vector(spec, torch.randn(spec.numel, generator=draw).clamp(-4, 4) * scale)


def _encoders() -> dict[str, Codec]:
    """What the default settings of each kind encode with, by id."""
    made = [codec_for(settings(kind=kind)) for kind, settings in by_kind(CodecKinds).items()]
    return {codec.id: codec for codec in made}


def _codec(id: str) -> Family:
    codec = codec_by_id(id)
    encoder = _encoders().get(id, codec)

    def read(data: bytes) -> None:
        if not data:
            return
        spec = SPECS[data[0] % len(SPECS)]
        state = codec.decode(messages.Payload(id, data[1:]), spec)
        assert state.spec == spec
        assert bool(torch.isfinite(state.vector()).all())

    def bodies() -> Iterator[bytes]:
        for number, spec in enumerate(SPECS):
            for state in _states(spec):
                values = state.map(torch.abs) if id.startswith("logquant") else state
                try:
                    yield bytes([number]) + encoder.encode(values, key=Key.root(0)).body
                except HeadwaterError:  # beyond what it can say
                    continue

    return Family(f"codec-{id}", list(bodies()), read)


def _since() -> Family:
    spec = SPECS[3]
    base = AdapterState.zeros(spec)
    codecs = [codec_by_id(id) for id in ("compeft.v1", "int8.v1")]
    changes = [c.encode(s, key=Key.root(0)) for c, s in zip(codecs, list(_states(spec))[1:3], strict=True)]

    def read(data: bytes) -> None:
        _, increments = read_since(messages.Payload(SINCE, data), spec)
        assert add_up(base, increments, codec_by_id).isfinite()

    rows = [encode_since(name_of(base.sha256()), some) for some in ([], changes[:1])]
    return Family("since.v1", [row.body for row in rows], read)


def _coefficients() -> Iterator[Family]:
    draw = np.random.default_rng(0)
    sums = draw.integers(-1000, 1000, 300)
    base = np.where(draw.random(300) < 0.1, sums + 1, sums)[:290]
    fields: dict[str, Any] = {"distribution": "rademacher", "unit_bits": 30}
    rows = [encode_sums(sums, None, version=0, **fields), encode_sums(sums, base, version=7, **fields)]
    yield Family(
        "seeds.v1",
        [row.body for row in rows],
        lambda data: decode_sums(messages.Payload(SEEDS, data), lambda v: base if v == 7 else None, LIMIT),
    )
    for name, plan in (
        ("scalars.v1", CHOICE),
        ("scalars.v1-implied", replace(CHOICE, entries=200, implied=True)),
    ):
        count = plan.count if plan.implied else plan.entries
        seeds = (
            np.arange(plan.count) if plan.implied else np.sort(draw.choice(plan.count, count, replace=False))
        )
        values = draw.integers(-32767, 32768, count)
        right = encode_scalars(SeedCoefficients(plan, plan.first + seeds.astype(np.int64), values))
        yield Family(
            name, [right.body], lambda data, plan=plan: decode_scalars(messages.Payload(SCALARS, data), plan)
        )


# --- envelopes ----------------------------------------------------------------------------------------


def _envelopes() -> Iterator[Family]:
    from headwater.config.codec import CompeftCodec
    from headwater.config.training import NoopTraining

    plan = messages.ClientPlan(NoopTraining(kind="noop"), CompeftCodec(kind="compeft"), 0.5, 2.0)
    payload = messages.Payload("c", b"\x00\x01")
    spec, digest = "b" * 64, "0c" * 32
    requests = [
        messages.ProfileRequest("r"),
        messages.TrainRequest(
            "r", 3, "ümit", spec, digest, messages.Payload("dense-fp32.v1", b"body"), 2, plan
        ),
        messages.EvaluateRequest("r", 3, "ann", spec, digest, messages.Payload("dense-fp32.v1", b"body")),
    ]
    replies = [
        messages.ClientProfile("ann", 5, 6, "d" * 64, "e" * 64),
        messages.EncodedUpdate(
            "r", 2, "ann", spec, digest, payload, {"fisher": payload}, 7, 3, {"loss": 0.5}
        ),
        messages.Evaluation("ann", 1, 4, {"loss": 0.5}),
        messages.ClientFailure.coded("ann", 7, Failure(FailureCode.DISK_FULL, (8, 5)), "r"),
    ]
    written = [wire.encode_reply(reply) for reply in replies]
    yield Family(
        "request",
        [wire.encode_request(r)[0] for r in requests],
        lambda data: wire.decode_request(data, b"body"),
    )
    yield Family("reply", written, lambda data: wire.decode_reply(data, max_bytes=LONGEST))
    yield Family("failure", written, wire.decode_failure)
    yield Family(
        "signed-reply",
        [wire.encode_signed(data, bytes(64)) for data in written],
        lambda data: wire.decode_signed(data, max_bytes=LONGEST),
    )
    envelopes = tuple(wire.encode_request(r)[0] for r in requests[1:2])
    group = messages.GroupRequest("edge", "r", 3, envelopes, merge_plan_to_json(PLAN))
    row = {"ann": {"loss": 0.5, "examples": 3.0}}
    reply = messages.GroupReply("edge", "r", 3, tuple(written[2:]), row, b"sum", b"gap")
    yield Family("group-request", [group_wire.encode_group_request(group)], group_wire.decode_group_request)
    yield Family(
        "group-reply",
        [group_wire.encode_group_reply(reply)],
        lambda data: group_wire.decode_group_reply(data, max_bytes=LONGEST),
    )


def _plans() -> Iterator[Family]:
    from headwater.config.codec import CompeftCodec
    from headwater.config.training import NoopTraining

    plan = messages.ClientPlan(
        NoopTraining(kind="noop"), CompeftCodec(kind="compeft"), 0.5, 2.0, messages.FisherPlan(9, 64.0)
    )
    seeded = replace(plan, seeds=CHOICE, fisher=None)
    device = messages.DeviceProfile(1 << 30, 2, {"default": messages.MethodCost(1 << 20, 0.5, 8)})
    for name, right, read in (
        ("plan", [plan_json.plan_to_json(plan), plan_json.plan_to_json(seeded)], plan_json.plan_from_json),
        ("device", [plan_json.device_to_json(device)], plan_json.device_from_json),
        ("merge-plan", [merge_plan_to_json(PLAN)], merge_plan_from_json),
    ):
        yield Family(name, [t.encode() for t in right], lambda data, read=read: read(_text(data)))


def _text(data: bytes) -> str:
    """A protobuf string of it, as decoders get it: what is no UTF-8 was refused before."""
    return data.decode(errors="replace")


# --- sums and files -----------------------------------------------------------------------------------


def _sums() -> Iterator[Family]:
    sketch = GapSketch(state_of(PAIR, [0.5] * 4), key=Key.root(1), probes=2, bound=8.0)
    rules: dict[str, Any] = {
        "mean": MeanAggregator(), "ties": TiesAggregator(0.5), "fisher": FisherAggregator(64.0),
        "median": MedianAggregator(1 << 20), "gap": sketch,
    }  # fmt: skip
    for name, rule in rules.items():
        acc = rule.add(rule.init(PLAN), update_of(PAIR, "ada", [1, -0.5, 0.25, 0], [1, 1, 1, 0.5]))
        acc = rule.add(acc, update_of(PAIR, "bob", [0, 0.5, -3, 2], [1, 1, 0.25, 1]))
        right = dump(rule, acc)

        def read(data: bytes, rule: Any = rule, head: bytes = right[:70]) -> None:
            body = head[38:] + data
            load(rule, PLAN, head[:6] + hashlib.sha256(body).digest() + body)

        yield Family(f"sums-{name}", [right[70:], dump(rule, rule.init(PLAN))[70:]], read)


def _expert_file() -> Family:
    with tempfile.TemporaryDirectory() as scratch:
        lora = PeftFolder.open(small.lora(Path(scratch) / "lora", head=True))
        ia3 = PeftFolder.open(small.ia3(Path(scratch) / "ia3"))
        right = [compress(lora, Compeft(0.3)), compress(lora, Exact()), compress(ia3, Compeft(0.3))]

    def read(data: bytes) -> None:
        with _InMemory(data + hashlib.sha256(data).digest()) as path:
            describe(open_adapter(path))

    # an adapter that was read may be one that no rule takes
    return Family("expert-file", [data[:-32] for data in right], read, (HeadwaterError,))


def _own_files() -> Iterator[Family]:
    spec, codec = SPECS[1], codec_by_id("compeft.v1")
    delta = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
    whole = compensate(FeedbackState(), delta)
    payload = codec.encode(whole, key=Key.root(0))
    decoded = codec.decode(payload, spec)
    states = [
        FeedbackState(), FeedbackState(delta), sent(FeedbackState(), 3, whole, decoded, b"e", None),
        sent(FeedbackState(), 3, whole, decoded, b"e " + payload.body, payload),
    ]  # fmt: skip

    def read(data: bytes) -> None:
        check = struct.pack("<I", zlib.crc32(data))
        state = read_state(io.BytesIO(b"HWFB3\n" + check + data), spec)
        pending_round(io.BytesIO(b"HWFB3\n" + check + data), spec)
        if state.pending is not None:
            _ = state.pending.sent

    right = [b"".join(to_pieces(state))[10:] for state in states]
    yield Family("feedback-file", right, read, (DecodeError, StorageError, SpecMismatch))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint().save(Path(scratch) / "c")
        kept = (Path(scratch) / "c").read_bytes()

    def reopen(data: bytes) -> None:
        with _InMemory(data) as path:
            Checkpoint.load(path, KEPT, "r" * 32)

    yield Family("checkpoint", [kept], reopen, (StorageError,))


class _InMemory:
    """A file of these bytes in memory, while the context lasts."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> Path:
        self._fd = os.memfd_create("fuzz")
        os.write(self._fd, self._data)
        return Path(f"/proc/self/fd/{self._fd}")

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


FAMILIES = {family.name: family for family in families()}
"""By name."""
