import pytest

from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.table import codec_by_id, codec_for
from headwater.config.codec import CodecSettings
from headwater.config.codec import CompeftCodec as CompeftCodecSettings
from headwater.config.codec import DenseCodec as DenseCodecSettings
from headwater.errors import ConfigError, DecodeError


def test_ids_are_frozen():
    for id in ("dense-fp32.v1", "dense-bf16.v1", "compeft.v1", "logquant8.v1"):
        assert codec_by_id(id).id == id


@pytest.mark.parametrize("id", ["", "compeft.v2", "../x" * 1000])
def test_unknown_id(id):
    with pytest.raises(DecodeError, match=r"compeft\.v1") as caught:
        codec_by_id(id)
    assert len(str(caught.value)) < 400


def test_settings_reach_the_codec():
    codec = codec_for(CompeftCodecSettings(kind="compeft", density=0.1, alpha=2.0))
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
