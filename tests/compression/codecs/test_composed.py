"""chain and by-module: codecs made of codecs."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from headwater.compression.codecs.blockwise import BlockwiseCodec
from headwater.compression.codecs.sign import SignCodec
from headwater.compression.table import codec_by_id, codec_for
from headwater.config.codec import Codec
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.codec_laws import KEY

SPEC = StateSpec.of(
    [
        TensorSpec("l1.lora_a", (4, 30), "lora_a"),
        TensorSpec("l1.lora_b", (30, 4), "lora_b", pair="l1.lora_a"),
        TensorSpec("head", (5, 40), "head"),
    ]
)
STATE = AdapterState.from_vector(SPEC, torch.randn(440, generator=torch.Generator().manual_seed(0)))
SIX = [1.0, -6.0, 2.0, 0.0, -3.0, 4.0]


def read(content):
    return TypeAdapter(Codec).validate_python(content)


def vector(values):
    spec = StateSpec.of([TensorSpec("t", (len(values),), "vector")])
    return AdapterState(spec, {"t": torch.tensor(values)})


def through(settings, state=STATE):
    codec = codec_for(settings)
    return codec.decode(codec.encode(state, key=KEY), state.spec)


def test_golden_chain():
    codec = codec_for(
        read({"kind": "chain", "first": {"kind": "topk", "density": 0.5}, "then": {"kind": "int4"}})
    )
    body = codec.encode(vector(SIX), key=KEY).body
    # version, largest; three of six places; "int4.v1"; its body: block 64, absmax 6, codes of −6, −3, 4
    assert body.hex() == "0100030400000019" + b"\7int4.v1".hex() + "01400000c0400003c0"
    assert codec.decode(Payload(codec.id, body), vector(SIX).spec)["t"].tolist() == pytest.approx(
        [0, -6, 0, 0, -24 / 7, 30 / 7]
    )


def test_a_chain_is_its_parts_one_after_the_other():
    found = through(
        read({"kind": "chain", "first": {"kind": "topk", "density": 0.1}, "then": {"kind": "sign"}})
    )
    for name, value in STATE.items():
        count = value.numel() // 10
        top = value.flatten().abs().topk(count)
        assert found[name].flatten().nonzero().flatten().tolist() == sorted(top.indices.tolist())
        assert torch.allclose(found[name].abs().max(), top.values.mean())


def test_rand_k_and_qsgd_together_are_unbiased():
    settings = read(
        {
            "kind": "chain", "error_feedback": False,
            "first": {"kind": "randk", "density": 0.5}, "then": {"kind": "qsgd", "bucket": 16},
        }
    )  # fmt: skip
    codec, true = codec_for(settings), vector(SIX)
    found = torch.stack(
        [codec.decode(codec.encode(true, key=KEY.child(i)), true.spec)["t"] for i in range(1000)]
    )
    errors = found.double() - true["t"]
    assert float(errors.mean(0).square().sum()) < 1.5 * float(errors.square().sum(1).mean()) / 1000
    assert settings.first.unbiased


def test_by_module_takes_the_first_pattern_that_fits():
    settings = read(
        {
            "kind": "by-module",
            "modules": (
                {"pattern": "*.lora_b", "codec": {"kind": "lossless"}},
                {"pattern": "l1.*", "codec": {"kind": "sign"}},
            ),
            "otherwise": {"kind": "int8"},
        }
    )
    found = through(settings)
    assert torch.equal(found["l1.lora_b"], STATE["l1.lora_b"])
    assert found["l1.lora_a"].abs().unique().numel() == 1
    for name, codec in (("l1.lora_a", SignCodec()), ("head", BlockwiseCodec("int8"))):
        alone = AdapterState(SPEC.only([name]), {name: STATE[name]})
        assert torch.equal(found[name], codec.decode(codec.encode(alone, key=KEY), alone.spec)[name])


def test_golden_by_module():
    spec = StateSpec.of([TensorSpec(n, (2,), "vector") for n in ("a", "b", "c")])
    state = AdapterState.from_vector(spec, torch.tensor([1.0, -1, 2, 2, 3, -3]))
    settings = read(
        {
            "kind": "by-module",
            "modules": ({"pattern": "b", "codec": {"kind": "dense", "dtype": "bf16"}},),
            "otherwise": {"kind": "int4"},
        }
    )
    body = codec_for(settings).encode(state, key=KEY).body
    names = (b"\7int4.v1" + b"\x0ddense-bf16.v1").hex()
    # two parts; a and c of the first, b of the second; codes 7 −7 7 −7; bf16 of 2
    parts = "0d01400000803f0000404000e0e00400400040"
    assert body.hex() == "0102" + names + "000100" + parts
    assert same_values(codec_for(settings).decode(Payload("by-module.v1", body), spec), [1, -1, 2, 2, 3, -3])


def same_values(state, values):
    return state.vector().tolist() == values


def test_depth_is_bounded():
    chain = {"kind": "chain"}
    assert read({"kind": "by-module", "modules": ({"pattern": "*", "codec": chain},)})
    for bad in (
        {"kind": "chain", "then": chain},
        {"kind": "by-module", "otherwise": {"kind": "by-module"}},
        {"kind": "chain", "then": {"kind": "topk"}},
        {"kind": "chain", "first": {"kind": "sign"}},
    ):
        with pytest.raises(ValidationError):
            read(bad)


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "chain", "first": {"kind": "randk"}},
        {"kind": "chain", "then": {"kind": "qsgd"}},
        {"kind": "by-module", "otherwise": {"kind": "qsgd"}},
        {
            "kind": "by-module",
            "otherwise": {"kind": "chain", "then": {"kind": "qsgd"}, "error_feedback": False},
        },
    ],
)
def test_unbiased_parts_have_no_error_feedback(content):
    with pytest.raises(ValidationError, match="unbiased part: set its error_feedback = false"):
        read(content)
    assert read({**content, "error_feedback": False}).error_feedback is False


def test_shared_places_reach_the_parts():
    content = {
        "kind": "by-module", "error_feedback": False,
        "otherwise": {"kind": "chain", "first": {"kind": "randk", "shared": True}, "error_feedback": False},
    }  # fmt: skip
    settings = read(content)
    assert not settings.is_of_a_round()
    of_round = settings.for_round("ab" * 16)
    assert of_round.is_of_a_round()
    codec = codec_for(of_round)
    bodies = [codec.encode(STATE, key=Key.root(i)).body for i in range(2)]
    assert bytes.fromhex("ab" * 16) in bodies[0]
    assert bodies[0] == bodies[1]
    chain = codec_for(of_round.otherwise)
    with pytest.raises(DecodeError, match="all clients of this round"):
        chain.decode(
            Payload("chain.v1", codec_for(read({"kind": "chain"})).encode(STATE, key=KEY).body), SPEC
        )


def test_traits_are_those_of_the_parts():
    assert read({"kind": "chain"}).may_lengthen()
    assert not read({"kind": "chain", "then": {"kind": "sign"}}).may_lengthen()
    assert read({"kind": "by-module"}).leaves_out()
    assert not read({"kind": "by-module", "otherwise": {"kind": "sign"}}).leaves_out()
    assert read({"kind": "nnadq", "dropout": 0.5}).leaves_out()
    assert not read({"kind": "nnadq"}).leaves_out()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("02", "version"),
        ("0102", "who chose"),
        ("0100 03 00", "."),
        ("0100 00 00 00", "length of an id"),
        ("0100 00 00 07" + b"topk.v1".hex(), "codec of values out of"),
        ("0100 00 00 08" + b"chain.v1".hex(), "codec of values out of"),
        ("0100 00 00 01ff", "codec of values out of"),
        ("0100 00 00 07" + b"sign.v1".hex() + "02", "version"),
    ],
)
def test_chains_that_are_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        codec_by_id("chain.v1").decode(Payload("chain.v1", bytes.fromhex(body)), vector(SIX).spec)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("02", "version"),
        ("0102", "number of parts"),
        ("0100", "part of t"),
        ("0101 00", "length of an id"),
        ("0101 0c" + b"by-module.v1".hex() + "00 00", "a codec out of"),
        ("0101 07" + b"sign.v1".hex() + "01", "named before, or the next"),
        ("0101 07" + b"sign.v1".hex() + "00 7f", "bytes of a part"),
        ("0101 07" + b"sign.v1".hex() + "00 01 02", "version"),
        ("0101 0d" + b"dense-bf16.v1".hex() + "00 0c" + "00" * 13, "the end"),
    ],
)
def test_modules_that_are_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        codec_by_id("by-module.v1").decode(Payload("by-module.v1", bytes.fromhex(body)), vector(SIX).spec)


def test_parts_are_numbered_as_tensors_name_them():
    spec = StateSpec.of([TensorSpec(n, (2,), "vector") for n in ("a", "b")])
    signs = bytes([7]) + b"sign.v1"
    part = (
        SignCodec().encode(AdapterState.zeros(StateSpec.of([TensorSpec("a", (2,), "vector")])), key=KEY).body
    )
    parts = 2 * (bytes([len(part)]) + part)
    good = bytes([1, 2]) + 2 * signs + bytes([0, 1]) + parts
    assert not codec_by_id("by-module.v1").decode(Payload("by-module.v1", good), spec).vector().any()
    for whose in ([1, 0], [0, 0], [1, 1]):
        bad = bytes([1, 2]) + 2 * signs + bytes(whose) + parts
        with pytest.raises(DecodeError, match=r"or the next|tensor for every part"):
            codec_by_id("by-module.v1").decode(Payload("by-module.v1", bad), spec)


def test_a_plan_carries_them():
    settings = read({"kind": "by-module", "modules": ({"pattern": "*", "codec": {"kind": "chain"}},)})
    again = TypeAdapter(Codec).validate_json(settings.model_dump_json())
    assert again == settings
    assert np.array_equal(through(again).vector(), through(settings).vector())
