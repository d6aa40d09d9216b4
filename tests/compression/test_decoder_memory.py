"""What decoding takes beside the body: in one fresh process, at most ``max_bytes`` and 10 MB for 1M values.

Measured with half as many of both, and 1.5 MB for what does not grow with them and what the allocator keeps.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes
import torch
from headwater.compression.table import CODEC_IDS, codec_by_id, codec_for
from headwater.config.codec import Codec
from headwater.config.settings import by_kind
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

torch.set_num_threads(1)
trim = ctypes.CDLL(None).malloc_trim
SPEC = StateSpec.of([TensorSpec("t", (500, 1000), "lora_a")])
values = torch.randn(500_000, generator=torch.Generator().manual_seed(1))
encoders = [codec_for(settings(kind=kind)) for kind, settings in by_kind(Codec).items()]


def resident(what):
    return int(open("/proc/self/status").read().split(what)[1].split()[0]) * 1024


def peak(codec, body):
    trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS:")
    try:
        codec.decode(Payload(codec.id, body), SPEC)
    except DecodeError:
        pass
    return resident("VmHWM:") - before


for codec in {codec.id: codec for codec in [*encoders, codec_by_id("logquant8.v1")]}.values():
    state = AdapterState.from_vector(SPEC, values.abs() if "logquant" in codec.id else values)
    body = codec.encode(state, key=Key.root(0)).body
    bodies = [body, body[:-1] + bytes([body[-1] ^ 1]), body[: len(body) // 2]]
    print(codec.id, max(peak(codec, one) for one in bodies) - codec.max_bytes(SPEC))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are reset in Linux' /proc")
def test_no_decoder_takes_more_than_max_bytes_and_ten_megabytes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    over = {id: int(size) for id, size in (line.split() for line in done.stdout.splitlines())}
    assert len(over) >= 17
    assert {id: size for id, size in over.items() if size > 6_500_000} == {}
