import pytest
import torch
from pydantic import ValidationError

from headwater.compression.compeft import CompeftCodec
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.table import codec_by_id, codec_for
from headwater.config.codec import Codec, CodecSettings
from headwater.config.codec import CompeftCodec as CompeftCodecSettings
from headwater.config.codec import DenseCodec as DenseCodecSettings
from headwater.config.settings import by_kind
from headwater.errors import ConfigError, DecodeError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

IDS = (
    "dense-fp32.v1", "dense-bf16.v1", "dense-fp16.v1", "lossless.v1", "compeft.v1", "compeft.v2", "stc.v1",
    "sign.v1",
    "int8.v1", "int4.v1", "nf4.v1", "topk.v1", "sparseloco.v1", "qsgd.v1", "randk.v1", "nnadq.v1",
    "powersgd.v1", "chain.v1", "by-module.v1", "logquant8.v1",
)  # fmt: skip


def test_ids_are_frozen():
    for id in IDS:
        assert codec_by_id(id).id == id


@pytest.mark.parametrize("kind", sorted({*by_kind(Codec)} - {"dense"}))
def test_what_every_kind_sends_can_be_read_by_its_id(kind):
    codec = codec_for(by_kind(Codec)[kind](kind=kind))
    spec = StateSpec.of([TensorSpec("a", (9, 7), "vector"), TensorSpec("b", (3000,), "vector")])
    state = AdapterState.from_vector(spec, torch.linspace(-1, 1, 3063) ** 3)
    payload, sent = codec.round_trip(state, key=Key.root(0))
    assert payload.codec in IDS
    assert codec_by_id(payload.codec).decode(payload, spec).sha256() == sent.sha256()


@pytest.mark.parametrize("kind", sorted(by_kind(Codec)))
def test_error_feedback_goes_with_contractive_codecs_only(kind):
    settings = by_kind(Codec)[kind]
    if "error_feedback" in settings.model_fields:
        assert settings(kind=kind, error_feedback=False).error_feedback is False
        assert not settings.unbiased
    else:
        with pytest.raises(
            ValidationError, match=f"no error_feedback with codec '{kind}': .*(drops|unbiased)"
        ):
            settings(kind=kind, error_feedback=True)


@pytest.mark.parametrize("id", ["", "compeft.v3", "../x" * 1000])
def test_unknown_id(id):
    with pytest.raises(DecodeError, match=r"compeft\.v1") as caught:
        codec_by_id(id)
    assert len(str(caught.value)) < 800


def test_settings_reach_the_codec():
    settings = CompeftCodecSettings(kind="compeft", density=0.1, alpha=2.0, scale_bits=9)
    codec = codec_for(settings)
    assert isinstance(codec, CompeftGapsCodec)
    assert (codec.density, codec.alpha, codec.scale_bits) == (0.1, 2.0, 9)
    assert codec_for(settings.model_copy(update={"density_over": "all"}))._selection.over_all
    codec = codec_for(settings.written_by(["compeft.v1", "compeft.v3"]))
    assert isinstance(codec, CompeftCodec)
    assert (codec.density, codec.alpha) == (0.1, 2.0)
    dense = codec_for(DenseCodecSettings(kind="dense", dtype="bf16"))
    assert isinstance(dense, DenseCodec)
    assert dense.id == "dense-bf16.v1"


def test_every_default_codec_can_be_decoded():
    settings = CodecSettings()
    for codec in (codec_for(settings.up), codec_for(settings.down)):
        assert type(codec_by_id(codec.id)) is type(codec)


def test_settings_without_a_codec_are_refused_by_name():
    class Zip(DenseCodecSettings):
        """A kind that nobody entered in the table."""

    with pytest.raises(ConfigError, match="of an installed package, got settings of class Zip"):
        codec_for(Zip())
