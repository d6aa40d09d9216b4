"""Bytes of strangers: a changed byte is found; with a right checksum they are read or refused."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.compression.byte_reader import varint
from headwater.errors import DecodeError, HeadwaterError
from headwater.experts.compress import Compeft, Exact, compress
from headwater.experts.describe import describe
from headwater.experts.expert_file import open_adapter
from headwater.experts.layout import MAGIC, SUM
from headwater.merging.offline.peft_folder import PeftFolder
from tests.laws.codec_laws import mutations

from . import small


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("hostile")
    lora = PeftFolder.open(small.lora(place / "lora", head=True))
    ia3 = PeftFolder.open(small.ia3(place / "ia3"))
    return {
        "compeft": compress(lora, Compeft(0.3)),
        "exact": compress(lora, Exact()),
        "ia3": compress(ia3, Compeft(0.3)),
    }


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def read_all(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    describe(open_adapter(path))


def test_every_flipped_byte_is_an_error(files, tmp_path):
    data = files["ia3"]
    for at in range(len(data)):
        for bit in (0x01, 0x80):
            changed = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            with pytest.raises(DecodeError):
                read_all(tmp_path / "a.hw", changed)


def test_every_shorter_file_is_an_error(files, tmp_path):
    for length in range(len(files["ia3"])):
        with pytest.raises(DecodeError):
            read_all(tmp_path / "a.hw", files["ia3"][:length])
    with pytest.raises(DecodeError):
        read_all(tmp_path / "a.hw", files["ia3"] + b"\0")


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bytes_with_a_right_checksum_are_read_or_refused(files, tmp_path, data):
    body = files[data.draw(st.sampled_from(sorted(files)))][:-SUM]
    with contextlib.suppress(HeadwaterError):
        read_all(tmp_path / "a.hw", sealed(data.draw(mutations(body))))


@pytest.mark.parametrize(
    "config",
    [
        b"[" * 100_000,
        b'{"peft_type":"LORA","r":' + b"9" * 5000 + b"}",
        b'{"peft_type":"LORA","r":1e999}',
        b'{"peft_type":"LORA","lora_alpha":NaN}',
        b'{"peft_type":"LORA","unknown":1}',
        b'{"peft_type":"LORA", "r":4}',
        b'{"peft_type":"LORA","r":4,"r":4}',
        b'{"peft_type":"LORA","r":"4"}',
        b'{"peft_type":"OFT"}',
        b"\xff\xfe",
        b"null",
    ],
)
def test_a_config_of_another_form_is_refused(config, tmp_path):
    head = varint(len(config)) + config + varint(0) + bytes([0, 0]) + varint(0)
    with pytest.raises(DecodeError):
        read_all(tmp_path / "a.hw", sealed(MAGIC + varint(len(head)) + head))


def header(*parts: bytes) -> bytes:
    config = b'{"peft_type":"LORA"}'
    head = varint(len(config)) + config + varint(0) + bytes([0, 0]) + varint(len(parts)) + b"".join(parts)
    return MAGIC + varint(len(head)) + head


def part(name: bytes, code: int, shape: tuple[int, ...], size: int, shared: int = 0) -> bytes:
    sizes = b"".join(varint(axis) for axis in shape)
    return varint(shared) + varint(len(name)) + name + bytes([code, len(shape)]) + sizes + varint(size)


def test_a_small_file_of_many_values_is_refused_before_memory_is_taken(tmp_path):
    huge = header(part(b"w", 32, (1 << 31, 1 << 31), 0))
    with pytest.raises(DecodeError, match="values"):
        read_all(tmp_path / "a.hw", sealed(huge))
    factors = header(part(b"w", 0, (1 << 30, 1 << 30, 1 << 30), 0))
    with pytest.raises(DecodeError, match="values"):
        read_all(tmp_path / "a.hw", sealed(factors))


@pytest.mark.parametrize(
    "name", [b"", b"\xff", b"a\nb", b"__metadata__", b"a\0b", "a\u202eb".encode()], ids=repr
)
def test_names_that_are_none_are_refused(name, tmp_path):
    with pytest.raises(DecodeError):
        read_all(tmp_path / "a.hw", sealed(header(part(name, 32, (1,), 0))))


def test_a_tensor_twice_is_refused(tmp_path):
    twice = header(part(b"m", 0, (1, 2, 3), 2), part(b"m.lora_A.weight", 32, (1, 3), 16))
    with pytest.raises(HeadwaterError):
        read_all(tmp_path / "a.hw", sealed(twice + bytes(18)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04pickle", MAGIC[:-1] + b"\x02" + bytes(64)])
def test_another_file_is_refused(content, tmp_path):
    with pytest.raises(DecodeError):
        read_all(tmp_path / "a.hw", content)


@pytest.mark.parametrize("content", [b"", b'{"text": "a"}\n', b'{"text": "a film of rows"}\n' * 3])
def test_a_file_of_rows_among_adapters_is_called_one_of_another_kind(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DecodeError, match=r"got another file\..*--data goes before each file of rows"):
        open_adapter(tmp_path / "rows.jsonl")
