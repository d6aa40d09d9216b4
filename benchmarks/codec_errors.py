"""Bytes and error of every codec on one real update: ``make bench-compression``.

The update is what the first owner of examples/sentiment learns in round 1 (MiniLM and the corpus in
``.cache/headwater``). A row is a codec: bytes of the body for each value, and ‖decoded − x‖²/‖x‖², both the
mean of eight keys. ``milliseconds`` are of encoding and decoding, best of three. Results:
``benchmarks/results/codec_errors.json``.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from codec import KEY, _cpu
from picture import scatter
from pydantic import TypeAdapter

from headwater.compression.table import codec_for
from headwater.config import load_federation
from headwater.config.codec import Codec
from headwater.protocol.messages import ClientPlan
from headwater.simulation.simulate import open_runtime
from headwater.state import AdapterState
from headwater.training.cohort import TrainTask

EXAMPLE = Path(__file__).parents[1] / "examples" / "sentiment" / "federation.toml"
RESULTS = Path(__file__).parent / "results" / "codec_errors.json"

_HEAD_EXACT = ({"pattern": "*head*", "codec": {"kind": "dense", "dtype": "bf16"}},)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"kind": "dense"},
    {"kind": "dense", "dtype": "bf16"},
    {"kind": "dense", "dtype": "fp16"},
    {"kind": "lossless"},
    {"kind": "int8"},
    {"kind": "int4"},
    {"kind": "nf4"},
    {"kind": "nnadq"},
    {"kind": "nnadq", "sigma": 1e-3},
    {"kind": "nnadq", "sigma": 1e-3, "dropout": 0.5},
    {"kind": "sign"},
    {"kind": "qsgd"},
    {"kind": "qsgd", "levels": 1},
    *({"kind": "compeft", "density": k} for k in (0.01, 0.05, 0.1, 0.2)),
    *({"kind": "stc", "density": k} for k in (0.05, 0.2)),
    *({"kind": "topk", "density": 0.05, "bits": bits} for bits in (16, 8, 2)),
    {"kind": "topk", "density": 0.2, "bits": 2},
    {"kind": "sparseloco"},
    {"kind": "sparseloco", "density": 0.05},
    {"kind": "randk", "density": 0.05},
    {"kind": "powersgd", "rank": 1},
    {"kind": "powersgd", "rank": 4},
    {"kind": "chain", "first": {"kind": "topk", "density": 0.05}, "then": {"kind": "int4"}},
    {
        "kind": "chain", "first": {"kind": "randk", "density": 0.2}, "then": {"kind": "qsgd"},
        "error_feedback": False,
    },
    {"kind": "by-module", "modules": _HEAD_EXACT},
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    update = trained_update()
    rows = [measured(settings, update) for settings in SETTINGS]
    result = {"cpu": _cpu(), "values": update.spec.numel, "tensors": len(update.spec), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    points = {row["codec"]: (row["bytes_per_value"], row["squared_error"]) for row in rows}
    RESULTS.with_suffix(".svg").write_text(
        scatter("One client's update", points, "bytes a value", "squared error")
    )
    for row in rows:
        print(f"{row['codec']:40} {row['bytes_per_value']:9.4f} {row['squared_error']:9.6f}")


def trained_update() -> AdapterState:
    """Of the first owner, in round 1."""
    runtime = open_runtime(load_federation(EXAMPLE))
    settings, start = runtime.context.loaded.settings, runtime.context.initial_state()
    who = runtime.data.clients[0]
    task = TrainTask(
        who, start, runtime.data.client(who).train, ClientPlan(settings.training, settings.codec.up)
    )
    (result,) = runtime.context.trainer(settings.training).train([task], key=runtime.root.child("round", 1))
    assert isinstance(result.delta, AdapterState)
    return result.delta


def measured(settings: dict[str, Any], update: AdapterState) -> dict[str, Any]:
    codec, true = codec_for(TypeAdapter[Any](Codec).validate_python(settings)), update.vector().double()
    bodies, errors = [], []
    for number in range(8):
        payload, sent = codec.round_trip(update, key=KEY.child(number))
        bodies.append(len(payload.body))
        errors.append(float((sent.vector().double() - true).square().sum() / true.square().sum()))
    begin, seconds = 0.0, []
    for _ in range(3):
        begin = time.perf_counter()
        codec.decode(codec.encode(update, key=KEY), update.spec)
        seconds.append(time.perf_counter() - begin)
    return {
        "codec": named(settings),
        "bytes": round(statistics.mean(bodies)),
        "bytes_per_value": round(statistics.mean(bodies) / update.spec.numel, 4),
        "squared_error": float(f"{statistics.mean(errors):.4g}"),
        "milliseconds": round(1000 * min(seconds), 1),
    }


def named(settings: dict[str, Any]) -> str:
    """The kind and what differs from its defaults."""
    if settings["kind"] == "chain":
        return f"{named(settings['first'])} > {named(settings['then'])}"
    if settings["kind"] == "by-module":
        return "by-module head bf16, compeft"
    rest = [str(value) for key, value in settings.items() if key != "kind"]
    return " ".join([settings["kind"], *rest])


if __name__ == "__main__":
    main()
