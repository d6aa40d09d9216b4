"""HWAC1 byte for byte: golden vectors, a reader written from the page, and what liars send."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from headwater.errors import ConfigError, DecodeError, UpdateRejected
from headwater.merging import (
    FisherAggregator,
    GapSketch,
    MeanAggregator,
    MedianAggregator,
    ProductAggregator,
    TiesAggregator,
)
from headwater.merging.accumulator_bytes import dump, load, most_bytes
from headwater.merging.merge_plan_json import merge_plan_from_json, merge_plan_to_json
from headwater.merging.plan import MergePlan
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec
from headwater.strategies.rules import rule_for
from tests.laws.aggregator_laws import SEEDS, bits, directions, lora_spec, state_of, update_of
from tests.strategies.test_federated import federation

SPEC = StateSpec.of(
    [TensorSpec("q.A", (1, 2), "lora_a"), TensorSpec("q.B", (2, 1), "lora_b", pair="q.A", scaling=2.0)]
)
PLAN = MergePlan(SPEC, {"ada": 3, "bob": 1}, 4.0)
SKETCH = GapSketch(state_of(SPEC, [0.5] * 4), key=Key.root(1), probes=2, bound=8.0)
GOLDEN = {
    "mean": (MeanAggregator(), "f9041c8b516914627972d74d74035777232c3e336950a789ef1f93b433e631e8"),
    "ties": (TiesAggregator(0.5), "d54864712ad851afe86a21c39aa700a75cb2c7f9eaff157ab969589a546261c1"),
    "fisher": (FisherAggregator(64.0), "39c855d7a8b0139b73d5ce2d4e90e6b43e2903442b5c5f01a4b7f7a655d039f3"),
    "median": (MedianAggregator(1 << 20), "50d982c01f8568bff9bf18a008bf41a3f7aaef8d75e1ceef9623cf137a8ee7ba"),
    "gap": (SKETCH, "6a8b80c0713ee00b4b5dae501ba07684b9005c1a492150f9ae6f84f7990d8266"),
}
"""SHA-256 of the accumulator of both clients, as it is behind checksum and plan."""


def folded(rule: Any, plan: MergePlan = PLAN) -> Any:
    acc = rule.add(rule.init(plan), update_of(SPEC, "ada", [1, -0.5, 0.25, 0], [1, 1, 1, 0.5]))
    return rule.add(acc, update_of(SPEC, "bob", [0, 0.5, -3, 2], [1, 1, 0.25, 1]))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    rule, expected = GOLDEN[name]
    data = dump(rule, folded(rule))
    assert hashlib.sha256(data[70:]).hexdigest() == expected
    assert bits(load(rule, PLAN, data)) == bits(folded(rule))


class Stranger:
    """Reads the page's grammar and nothing else of ours."""

    def __init__(self, data: bytes) -> None:
        assert data[:6] == b"HWAC1\n"
        assert data[6:38] == hashlib.sha256(data[38:]).digest()
        self.data, self.at = data, 70

    def take(self, form: str) -> Any:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values if len(values) > 1 else values[0]

    def name(self) -> str:
        return self.take(f"<{self.take('<H')}s").decode()

    def value(self) -> Any:
        match self.take("<c"):
            case b"n":
                return None
            case b"b":
                return self.take("<?")
            case b"i":
                return self.take("<q")
            case b"f":
                return self.take("<d")
            case b"s":
                return self.name()
            case b"p":
                return [self.name() for _ in range(self.take("<I"))]
            case b"d" | b"r":
                return {self.name(): self.value() for _ in range(self.take("<I"))}
            case b"a":
                kind, rank = self.take("<cB")
                shape = [self.take("<Q") for _ in range(rank)]
                count = 1
                for size in shape:
                    count *= size
                if kind == b"f":
                    return [self.take("<f") for _ in range(count)]
                width = self.take("<B")
                parts = [self.data[self.at + i * width :][:width] for i in range(count)]
                self.at += count * width
                return [int.from_bytes(part, "little", signed=True) for part in parts]


def test_a_stranger_reads_it_from_the_page() -> None:
    stranger = Stranger(dump(TiesAggregator(0.5), folded(TiesAggregator(0.5))))
    found = stranger.value()
    assert stranger.at == len(stranger.data)
    unit = 2 ** found["bits"]
    assert found["participants"] == ["ada", "bob"]
    assert [value / unit for value in found["positive"]] == [3.0, 0.0, 0.0, 2.0]
    assert [value / unit for value in found["negative"]] == [0.0, 1.5, 3.0, 0.0]
    assert found["negative_weight"] == [0, 3, 1, 0]


def test_a_plan_travels() -> None:
    plan = MergePlan(
        SPEC, {"a": 2, "b": 1, "c": 4}, 4.0, seeds=SEEDS, directions=directions(),
        tensors={"a": ("q.A",)}, ranks={"c": 1}, groups={"a": "x", "b": "y", "c": "y"}, use=True,
    )  # fmt: skip
    part = plan.part(["c", "b"])
    assert merge_plan_from_json(merge_plan_to_json(part)) == part
    assert (part.total_weight, part.scale_bits(), part.weighs) == (7, plan.scale_bits(), True)
    assert "a" not in part.weights
    for weight in ("0", "1e999", "Infinity"):
        with pytest.raises(DecodeError, match="merge plan"):
            merge_plan_from_json(merge_plan_to_json(plan).replace('"a":2', f'"a":{weight}'))
    for wrong in ("{}", "["):
        with pytest.raises(DecodeError, match="merge plan"):
            merge_plan_from_json(wrong)
    with pytest.raises(ConfigError, match="part of its clients"):
        plan.part(["z"])


def sealed(body: bytes) -> bytes:
    """With a checksum that is right: what is wrong is no accident."""
    return b"HWAC1\n" + hashlib.sha256(body).digest() + body


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def lie(data: bytes) -> bytes:
        assert data.count(old) >= 1
        return sealed(data[38:].replace(old, new, 1))

    return lie


NAMES = b"p\x02\0\0\0\x03\0ada\x03\0bob"
LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another format": (lambda data: b"HWAC2" + data[5:], "HWAC1"),
    "a damaged byte": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
    "another plan or rule": (lambda data: sealed(bytes(32) + data[70:]), "this rule and this plan"),
    "too long": (lambda data: data + bytes(1 << 22), "at most"),
    "more than its value": (lambda data: sealed(data[38:] + b"n"), "the end"),
    "a client of another plan": (replaced(b"bob", b"eve"), "clients of the plan"),
    "a client twice": (replaced(NAMES, NAMES.replace(b"bob", b"ada")), "ascending"),
    "another field": (replaced(b"\x04\0bits", b"\x04\0tibs"), "field bits"),
    "other units": (replaced(b"\x04\0bitsi\x34", b"\x04\0bitsi\x20"), "bits"),
    "more values than there are": (
        replaced(b"positiveaq\x01" + struct.pack("<Q", 4), b"positiveaq\x01" + struct.pack("<Q", 5)),
        "positive",
    ),
    "more memory than is stated": (
        replaced(b"positiveaq\x01" + struct.pack("<Q", 4), b"positiveaq\x01" + struct.pack("<Q", 2**60)),
        "memory",
    ),
    "a wider form": (
        replaced(
            b"positive_weightaq\x01" + struct.pack("<Q", 4) + b"\x01\x03\0\0\x01",
            b"positive_weightaq\x01" + struct.pack("<Q", 4) + b"\x02\x03\0\0\0\0\0\x01\0",
        ),
        "as few bytes",
    ),
    "more weight than its clients have": (
        replaced(b"\x01\x03\0\0\x01", b"\x01\x05\0\0\x01"), "can add up to",
    ),
    "a sum beyond the bound": (
        replaced(b"\x01\x03\0\0\x01", b"\x01\x00\0\0\x01"), "can add up to",
    ),
    "more values than each client keeps": (
        replaced(b"\x01\0\x03\x01\0", b"\x01\x01\x03\x03\0"), "weights|add up",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_what_is_refused(what: str) -> None:
    rule = TiesAggregator(0.5)
    lie, reason = LIES[what]
    with pytest.raises(DecodeError, match=reason):
        load(rule, PLAN, lie(dump(rule, folded(rule))))


def test_an_empty_array_of_huge_sides() -> None:
    rule, _ = GOLDEN["median"]
    sides = struct.pack("<3Q", 2**62, 2**62, 0)
    lie = replaced(b"adaaf\x01" + struct.pack("<Q", 4), b"adaaf\x03" + sides)
    with pytest.raises(DecodeError, match="memory"):
        load(rule, PLAN, lie(dump(rule, folded(rule))))


def test_each_rule_refuses_sums_that_no_updates_have() -> None:
    def mean(acc: Any) -> None:
        acc.methods[""].total[1] = 4 * 4 * 2**acc.bits + 1

    def mean_count(acc: Any) -> None:
        acc.methods[""].values = 3

    def mean_energy(acc: Any) -> None:
        acc.norms["ada"] = type(acc.norms["ada"])(3, 1.0)

    def fisher(acc: Any) -> None:
        acc.product[0] = 4 * 64 * 4 * 2**acc.product_bits

    def fisher_mean(acc: Any) -> None:
        acc.fisher.fill_(4 * 64 * 2**acc.fisher_bits)

    def gap(acc: Any) -> None:
        acc.products["q.B"][0, 0] = 4 * 8 * 2**acc.bits + 1

    def median(acc: Any) -> None:
        del acc.values["bob"]

    def median_value(acc: Any) -> None:
        acc.values["bob"] = torch.tensor([0.0, 0.0, 0.0, 4.5])

    cases: list[tuple[Any, Any]] = [
        (MeanAggregator(), mean), (MeanAggregator(), mean_count), (MeanAggregator(), mean_energy),
        (FisherAggregator(64.0), fisher), (FisherAggregator(64.0), fisher_mean),
        (SKETCH, gap), (MedianAggregator(1 << 20), median), (MedianAggregator(1 << 20), median_value),
    ]  # fmt: skip
    for rule, lie in cases:
        acc = folded(rule)
        lie(acc)
        with pytest.raises((DecodeError, UpdateRejected)):
            load(rule, PLAN, dump(rule, acc))


def test_one_client_twice_among_the_values() -> None:
    rule = MedianAggregator(1 << 20)
    data = dump(rule, folded(rule))
    at = data.rindex(b"\x03\0bob")
    with pytest.raises(DecodeError, match="names in ascending order"):
        load(rule, PLAN, sealed(data[38:at] + b"\x03\0ada" + data[at + 5 :]))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_none(number: float) -> None:
    acc = folded(MeanAggregator())
    acc.norms["ada"] = dataclasses.replace(acc.norms["ada"], energy=number)
    with pytest.raises(DecodeError, match="a finite number"):
        load(MeanAggregator(), PLAN, dump(MeanAggregator(), acc))


@pytest.mark.parametrize("side", ["right", "left"])
def test_products_beyond_what_clients_can_change(side: str) -> None:
    spec = lora_spec(40, 30, 1)
    plan, base = MergePlan(spec, {"ada": 3, "bob": 1}, 4.0), state_of(spec, [0.1] * spec.numel)
    rule = ProductAggregator(base, key=Key.root(1), width=1)
    acc = rule.add(rule.init(plan), update_of(spec, "ada", [0.1] * spec.numel))
    assert bits(load(rule, plan, dump(rule, acc))) == bits(acc)
    honest = dump(rule, acc)
    getattr(acc.products["q.lora_B"], side).view(-1)[0] = 2**60
    with pytest.raises(DecodeError, match=r"product, q\.lora_B"):
        load(rule, plan, dump(rule, acc))
    acc = load(rule, plan, honest)
    acc.methods[""].total[0] = 2**60
    with pytest.raises(DecodeError, match="accumulator, sums"):
        load(rule, plan, dump(rule, acc))


def test_every_value_kept_of_updates_that_keep_half() -> None:
    rule = TiesAggregator(0.5)
    acc = folded(rule)
    acc.positive_weight.fill_(4)
    acc.positive.fill_(4)
    acc.negative_weight.zero_()
    acc.negative.zero_()
    with pytest.raises(DecodeError, match="at most 8 together"):
        load(rule, PLAN, dump(rule, acc))


BOUNDED: dict[str, Any] = {
    "mean": MeanAggregator(), "ties": TiesAggregator(0.5), "fisher": FisherAggregator(64.0),
    "median": MedianAggregator(1 << 20),
    **{
        kind: rule_for(federation(strategy={"kind": kind}).strategy, Key.root(1))
        for kind in ("dare_linear", "magmax", "model_stock", "iso_c")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
def test_a_norm_bound_holds_for_sums_too(name: str) -> None:
    """Updates are shortened to it before they are added, so their sum is no longer than so often."""
    bounded, rule, fisher = dataclasses.replace(PLAN, norm_bound=0.5), BOUNDED[name], [1, 1, 1, 0.5]
    short = rule.add(rule.init(bounded), update_of(SPEC, "ada", [0.5, 0, 0, 0], fisher))
    short = rule.add(short, update_of(SPEC, "bob", [0, 0.3, 0, -0.4], fisher))
    assert bits(load(rule, bounded, dump(rule, short))) == bits(short)
    with pytest.raises(DecodeError, match="norm"):
        load(rule, bounded, dump(rule, folded(rule, bounded)))


def test_settings_of_the_rule_count() -> None:
    data = dump(TiesAggregator(0.5), folded(TiesAggregator(0.5)))
    with pytest.raises(DecodeError, match="this rule"):
        load(TiesAggregator(0.25), PLAN, data)


def test_the_stated_memory() -> None:
    """Of a mean: sums of a method and room for what is kept of each client."""
    assert most_bytes(MeanAggregator(), PLAN) == 8 * 4 * 9 + 2**20 + 2**9 * 2
    assert most_bytes(MedianAggregator(1), PLAN) == most_bytes(MeanAggregator(), PLAN) + 2 * SPEC.nbytes


def test_what_has_no_form_is_an_error_of_the_rule() -> None:
    rule = TiesAggregator(0.5)
    acc = folded(rule)
    object.__setattr__(acc, "positive", torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ConfigError, match="int64 or float32"):
        dump(rule, acc)
    object.__setattr__(acc, "positive", {1, 2})
    with pytest.raises(ConfigError, match="cannot be summed outside"):
        dump(rule, acc)


def test_a_kept_update_beyond_the_bound_is_no_accumulator() -> None:
    """Found by ``make fuzz``: it was refused as if it were a client's update, which no one sent."""
    rule, _ = GOLDEN["median"]
    right = dump(rule, folded(rule))
    body = right[38:].replace(struct.pack("<f", -3.0), struct.pack("<f", -4.5))
    assert body != right[38:]
    with pytest.raises(DecodeError, match=r"finite values in \[-4, 4\]"):
        load(rule, PLAN, right[:6] + hashlib.sha256(body).digest() + body)
