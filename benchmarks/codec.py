"""Bytes and speed of every codec: ``python benchmarks/codec.py`` → ``benchmarks/results/codec.json``.

One thread, best of five. MV/s is million values a second of the whole path (state to payload and back),
not of the entropy coder alone. The zstd column needs the package ``zstandard``; it is skipped without.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from picture import bars

from headwater.compression.codec import Codec
from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.ternary import bound_bits, kept
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

KEY = Key.root(0)
N = 1_000_000
RESULTS = Path(__file__).parent / "results" / "codec.json"


def main() -> None:
    torch.set_num_threads(1)
    result = {
        "machine": {"cpu": _cpu(), "python": platform.python_version(), "numpy": np.__version__},
        "compeft_1m": [_compeft(percent) for percent in (1, 5, 10, 20)],
        "codecs_1m": [_codec(codec, _vector(square)) for codec, square in _ALL],
        "minilm_lora": [_codec(codec, _lora(square)) for codec, square in _ALL],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sizes = {str(row["codec"]): [float(str(row["bytes"]))] for row in result["minilm_lora"]}
    RESULTS.with_suffix(".svg").write_text(bars("MiniLM's LoRA, 73,728 values: bytes of one update", sizes))
    for title, rows in result.items():
        if isinstance(rows, list):
            print(f"\n{title}")
            print("  ".join(f"{name:>14}" for name in rows[0]))
            for row in rows:
                print("  ".join(f"{value:>14}" for value in row.values()))


_ALL: list[tuple[Codec, bool]] = [
    (DenseCodec("fp32"), False),
    (DenseCodec("bf16"), False),
    (CompeftCodec(0.05), False),
    (CompeftCodec(0.05, alpha=1.0), False),
    (LogQuantCodec(), True),
]


def _vector(square: bool) -> AdapterState:
    """One tensor of a million Gaussian values (or their squares)."""
    values = torch.randn(N, generator=torch.Generator().manual_seed(KEY.seed()))
    spec = StateSpec.of([TensorSpec("t", (N,), "vector")])
    return AdapterState(spec, {"t": values.square() if square else values})


def _lora(square: bool) -> AdapterState:
    """The LoRA of a MiniLM: 6 layers, query and value, r = 8, d = 384; B a tenth of A."""
    tensors = []
    for layer in range(6):
        for module in ("query", "value"):
            a = f"layer.{layer}.{module}.lora_a"
            tensors.append(TensorSpec(a, (8, 384), "lora_a"))
            tensors.append(TensorSpec(a[:-1] + "b", (384, 8), "lora_b", pair=a, scaling=2.0))
    spec = StateSpec.of(tensors)
    generator = torch.Generator().manual_seed(KEY.seed())
    values = {}
    for t in spec:
        value = torch.randn(t.shape, generator=generator) * (1e-3 if t.role == "lora_a" else 1e-4)
        values[t.name] = value.square() if square else value
    return AdapterState(spec, values)


def _compeft(percent: int) -> dict[str, object]:
    state, codec = _vector(False), CompeftCodec(percent / 100)
    row = _codec(codec, state)
    bound = bound_bits(N, kept(N, codec.density)) / 8
    return {
        "percent": percent,
        "bound_bytes": round(bound),
        "bytes": row["bytes"],
        "excess_percent": round(100 * (int(str(row["bytes"])) / bound - 1), 3),
        "zstd19_bytes": _zstd(codec.decode(codec.encode(state, key=KEY), state.spec)),
        "fp16_ratio": round(2 * N / int(str(row["bytes"])), 1),
        "encode_mvps": row["encode_mvps"],
        "decode_mvps": row["decode_mvps"],
    }


def _codec(codec: Codec, state: AdapterState) -> dict[str, object]:
    payload = codec.encode(state, key=KEY)
    alpha = getattr(codec, "alpha", None)
    return {
        "codec": codec.id if alpha is None else f"{codec.id} a={alpha:g}",
        "values": state.spec.numel,
        "bytes": len(payload.body),
        "bits_per_value": round(8 * len(payload.body) / state.spec.numel, 4),
        "encode_mvps": round(state.spec.numel / 1e6 / _best(lambda: codec.encode(state, key=KEY)), 1),
        "decode_mvps": round(state.spec.numel / 1e6 / _best(lambda: codec.decode(payload, state.spec)), 1),
    }


def _best(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _zstd(decoded: AdapterState) -> int | str:
    """zstd -19 over five ternary digits a byte, what one would do without an entropy model."""
    try:
        import zstandard
    except ImportError:
        return "-"
    digits = np.sign(decoded.vector().numpy()).astype(np.int64) + 1
    packed = (digits.reshape(-1, 5) * np.array([1, 3, 9, 27, 81])).sum(axis=1).astype(np.uint8)
    return len(zstandard.ZstdCompressor(level=19).compress(packed.tobytes()))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
