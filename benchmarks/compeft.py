"""Formats of ``compeft`` beside the entropy and general compressors: ``benchmarks/results/compeft.json``.

``python benchmarks/compeft.py [--adapter FILE.npz ...]``. One thread; speeds are medians of CPU time of the
whole path, state to payload and back, of both formats in turns, in million values a second. General
compressors get the same ternary values in the form that suits each best of those tried: five to a byte, or a
bitmap of places and one of signs; pcodec int16. Each is skipped unless its package is installed. An adapter
is what a client encodes, one array a tensor.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec import _cpu, _lora
from picture import bars

from headwater.compression.codec import Codec
from headwater.compression.compeft import CompeftCodec
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.ternary import bound_bits, kept
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

KEY = Key.root(0)
PERCENTS = (1, 5, 10, 20)
RESULTS = Path(__file__).parent / "results" / "compeft.json"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--adapter", type=Path, action="append", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    one = {size: _one(size) for size in (1_000_000, 10_000_000)}
    result: dict[str, Any] = {
        "machine": {"cpu": _cpu(), "python": platform.python_version(), "numpy": np.__version__},
        "bytes_1m": [_bytes(one[1_000_000], percent) for percent in PERCENTS],
        "speed_10m": [_speed(one[10_000_000], percent, options.repeats) for percent in (1, 5, 20)],
        "peers_1m": [row for percent in PERCENTS for row in _peers(one[1_000_000], percent)],
        "small_tensors": [_small("MiniLM, Gaussian", _lora(False), percent) for percent in PERCENTS],
    }
    for path in options.adapter:
        state = _adapter(path)
        result["small_tensors"] += [_small(path.stem, state, percent) for percent in PERCENTS]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    speeds = {}
    for row in result["speed_10m"]:
        for name in ("v1 encode", "v2 encode", "v1 decode", "v2 decode"):
            speeds[f"{row['percent']} % {name}"] = [row[f"{name} MV/s"]]
    RESULTS.with_suffix(".svg").write_text(bars("compeft, 10M values: million values a second", speeds))
    for title, rows in result.items():
        if isinstance(rows, list):
            print(f"\n{title}")
            print("  ".join(f"{name:>16}" for name in rows[0]))
            for row in rows:
                print("  ".join(f"{value:>16}" for value in row.values()))


def _one(size: int) -> AdapterState:
    values = torch.randn(size, generator=torch.Generator().manual_seed(KEY.seed()))
    return AdapterState(StateSpec.of([TensorSpec("t", (size,), "vector")]), {"t": values})


def _adapter(path: Path) -> AdapterState:
    with np.load(path) as arrays:
        values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return AdapterState(
        StateSpec.of([TensorSpec(n, tuple(v.shape), "vector") for n, v in values.items()]), values
    )


def _bound(spec: StateSpec, percent: int) -> float:
    """Bytes: Σ over tensors of N·(H2(k) + k) bits."""
    return sum(bound_bits(t.numel, kept(t.numel, percent / 100)) for t in spec) / 8


def _length(codec: Codec, state: AdapterState) -> int:
    return len(codec.encode(state, key=KEY).body)


def _bytes(state: AdapterState, percent: int) -> dict[str, object]:
    first, gaps = (_length(make(percent / 100), state) for make in (CompeftCodec, CompeftGapsCodec))
    bound = _bound(state.spec, percent)
    return {
        "percent": percent, "bound": round(bound), "v1": first, "v2": gaps,
        "v1 of bound": round(first / bound, 5), "v2 of bound": round(gaps / bound, 5),
    }  # fmt: skip


def _small(name: str, state: AdapterState, percent: int) -> dict[str, object]:
    """Payloads against the sum of entropies, and against ComPEFT's own: one density for all, one scale."""
    density, bound = percent / 100, _bound(state.spec, percent)
    first, exact = _length(CompeftCodec(density), state), _length(CompeftGapsCodec(density), state)
    rounded = CompeftGapsCodec(density, scale_bits=8)
    short, sent = rounded.round_trip(state, key=KEY)
    best = CompeftGapsCodec(density).round_trip(state, key=KEY)[1]
    errors = [float((state - values).norm()) ** 2 for values in (sent, best)]
    count = int((best.vector() != 0).sum())
    paper = (bound_bits(state.spec.numel, count) + 16) / 8
    whole, largest = CompeftGapsCodec(density, over_all=True).round_trip(state, key=KEY)
    own = (bound_bits(state.spec.numel, int((largest.vector() != 0).sum())) + 16) / 8
    return {
        "adapter": name, "tensors": len(state.spec), "percent": percent, "bound": round(bound),
        "v1": round(first / bound, 4), "v2": round(exact / bound, 4),
        "v2, 8 bits": round(len(short.body) / bound, 4), "error of 8 bits": round(errors[0] / errors[1], 6),
        "paper's formula": round(paper / bound, 4), "over all, of paper's": round(len(whole.body) / own, 4),
        "error of over all": round(float((state - largest).norm()) ** 2 / errors[1], 4),
    }  # fmt: skip


def _speed(state: AdapterState, percent: int, repeats: int) -> dict[str, object]:
    codecs: dict[str, Codec] = {"v1": CompeftCodec(percent / 100), "v2": CompeftGapsCodec(percent / 100)}
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, codec in codecs.items():
            payload = codec.encode(state, key=KEY)
            seconds.setdefault(f"{name} encode", []).append(_cpu_s(partial(codec.encode, state, key=KEY)))
            taken = _cpu_s(partial(codec.decode, payload, state.spec))
            seconds.setdefault(f"{name} decode", []).append(taken)
    millions = state.spec.numel / 1e6
    row: dict[str, object] = {"percent": percent}
    row |= {f"{name} MV/s": round(millions / statistics.median(all)) for name, all in seconds.items()}
    for what in ("encode", "decode"):
        pairs = zip(seconds[f"v1 {what}"], seconds[f"v2 {what}"], strict=True)
        row[f"{what}, times v1"] = round(statistics.median(old / new for old, new in pairs), 2)
    return row


def _cpu_s(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _peers(state: AdapterState, percent: int) -> list[dict[str, object]]:
    codec = CompeftGapsCodec(percent / 100)
    payload, sent = codec.round_trip(state, key=KEY)
    signs = np.sign(sent.vector().numpy()).astype(np.int8)
    digits = (signs.astype(np.int64).reshape(-1, 5) + 1) @ np.array([1, 3, 9, 27, 81])
    forms = {
        "five a byte": digits.astype(np.uint8).tobytes(),
        "two bitmaps": np.packbits(signs != 0).tobytes() + np.packbits(signs[signs != 0] < 0).tobytes(),
    }
    rows = [
        _row(percent, codec.id, len(payload.body), len(signs), lambda: codec.encode(state, key=KEY),
             lambda: codec.decode(payload, state.spec))
    ]  # fmt: skip
    for name, (module, pack, unpack) in _PEERS.items():
        try:
            library = importlib.import_module(module)
        except ImportError:
            continue
        if module == "pcodec":
            inputs: dict[str, Any] = {"int16": signs.astype(np.int16)}
        else:
            inputs = forms
        packed = {form: pack(library, data) for form, data in inputs.items()}
        form = min(packed, key=lambda form: len(packed[form]))
        rows.append(
            _row(percent, f"{name}, {form}", len(packed[form]), len(signs),
                 partial(pack, library, inputs[form]),
                 partial(unpack, library, packed[form]))
        )  # fmt: skip
    return rows


def _row(
    percent: int, name: str, size: int, values: int, pack: Callable[[], object], unpack: Callable[[], object]
) -> dict[str, object]:
    times = [statistics.median(_cpu_s(call) for _ in range(3)) for call in (pack, unpack)]
    speeds = [round(values / 1e6 / seconds, 1) for seconds in times]
    return {
        "percent": percent, "by": name, "bytes": size, "pack MV/s": speeds[0], "unpack MV/s": speeds[1]
    }  # fmt: skip


_Peer = tuple[str, Callable[[Any, Any], bytes], Callable[[Any, bytes], object]]
_PEERS: dict[str, _Peer] = {
    "zstd-19": (
        "zstandard",
        lambda m, d: m.ZstdCompressor(level=19).compress(d),
        lambda m, d: m.ZstdDecompressor().decompress(d),
    ),
    "brotli-11": ("brotli", lambda m, d: m.compress(d, quality=11), lambda m, d: m.decompress(d)),
    "pcodec": (
        "pcodec",
        lambda m, d: m.standalone.simple_compress(d, m.ChunkConfig(compression_level=12)),
        lambda m, d: m.standalone.simple_decompress(d),
    ),
}


if __name__ == "__main__":
    main()
