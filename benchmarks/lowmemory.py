"""Memory of every way to train: ``python benchmarks/lowmemory.py``, into ``results/``.

Each row is a fresh process that makes two steps: VmHWM above the loaded model and of the whole process,
beside the traced peak of live bytes and the prediction. The file is written after every row;
``--only smollm2:mezo:128`` does one row and prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from picture import bars

RESULTS = Path(__file__).parent / "results"
FILES = {"smollm2": "examples/presidents/federation.toml", "minilm": "examples/sentiment/federation.toml"}
_BACKPROP = 'training={kind="backprop"}'
_PROMPT = 'adapter={kind="prompt", tokens=8}'
_ONE = 'assignment={kind="shares", shares={one=1.0}}'
MODES = {
    "inference": [_BACKPROP],
    "mezo": ['training={kind="mezo"}'],
    "forward_gradient": ['training={kind="forward_gradient"}'],
    "checkpointing": ['training={kind="backprop", gradient_checkpointing=true}'],
    "backprop": [_BACKPROP],
}
"""By name, what is changed in the model's file."""
FURTHER = {
    "kseed": ['training={kind="kseed"}'],
    "decomfl": ['training={kind="decomfl"}'],
    "spry": ['training={kind="spry"}'],
    "blackbox": [_PROMPT, 'training={kind="blackbox"}'],
    "backprop, prompt": [_PROMPT, _BACKPROP],
    "backprop, last layer": [_ONE, 'methods={one={last_layers=1, training={kind="backprop"}}}'],
    "forward_gradient, last layer": [
        _ONE,
        'methods={one={last_layers=1, training={kind="forward_gradient"}}}',
    ],
    "mezo, last layer": [_ONE, 'methods={one={last_layers=1, training={kind="mezo"}}}'],
    "backprop, rank 2": [_ONE, 'methods={one={rank=2, training={kind="backprop"}}}'],
}
"""At :data:`FURTHER_AT` tokens: what the table of lengths leaves out."""
FURTHER_AT = 128
LENGTHS = (64, 128, 256, 512)
NEEDED_MIB = {"smollm2": 4.0, "minilm": 1.0}
"""Per token of a batch, of a backprop step, with room to spare: rows that do not fit now are left out."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--only", help="MODEL:MODE:TOKENS")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(**json.loads(options.child))))
        return
    if options.only:
        model, mode, tokens = options.only.split(":")
        print(json.dumps(_row(model, mode, int(tokens), options.batch), indent=1))
        return
    file = RESULTS / "lowmemory.json"
    known = json.loads(file.read_text())["memory"] if file.exists() else []
    rows = {(r["model"], r["mode"], r["tokens"]): r for r in known}
    for model in options.models:
        wanted = [(mode, tokens) for tokens in LENGTHS for mode in MODES]
        for mode, tokens in [*wanted, *((mode, FURTHER_AT) for mode in FURTHER)]:
            rows[model, mode, tokens] = _row(model, mode, tokens, options.batch)
            _write(list(rows.values()), options.batch)


def _write(rows: list[dict[str, Any]], batch: int) -> None:
    done = [row for row in rows if "peak_mib" in row]
    result = {
        "machine": {"python": platform.python_version(), "cores": os.cpu_count()},
        "memory": rows,
        "ratios": [_ratios(done, m, t) for m in FILES for t in LENGTHS],
        "worst_prediction_percent": max((abs(r["off_percent"]) for r in done), default=None),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lowmemory.json").write_text(json.dumps(result, indent=1) + "\n")
    for model in FILES:
        own = [r for r in done if r["model"] == model and r["mode"] in MODES]
        shown = {f"{r['mode']} {r['tokens']}": [r["peak_mib"]] for r in own}
        if shown:
            title = f"{model}, batch {batch}: peak resident memory of a step, MiB"
            (RESULTS / f"lowmemory-{model}.svg").write_text(bars(title, shown))


def _row(model: str, mode: str, tokens: int, batch: int) -> dict[str, Any]:
    head = {"model": model, "mode": mode, "batch": batch, "tokens": tokens}
    need, free = NEEDED_MIB[model] * batch * tokens, _free_mib()
    if mode.startswith("backprop") and need > free:
        return {**head, "left_out": f"may need {need:.0f} MiB of the {free:.0f} MiB that are free"}
    command = [sys.executable, __file__, "--child", json.dumps(head)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        return {**head, "left_out": done.stderr.strip().splitlines()[-1] if done.stderr else "ended"}
    row: dict[str, Any] = {**head, **json.loads(done.stdout.splitlines()[-1])}
    print(
        f"{model:8} {mode:20} {tokens:4} {row['peak_mib']:8.0f} MiB, {row['off_percent']:+.1f} %", flush=True
    )
    return row


def _child(model: str, mode: str, batch: int, tokens: int) -> dict[str, float]:
    import torch

    from headwater.adapters.peak_memory import live_peak
    from headwater.client.device.costs import predicted
    from headwater.client.device.memory import resident_base, return_freed_memory
    from headwater.client.device.trial import plan_of, train_two_steps
    from headwater.config import load_federation
    from headwater.process_memory import status_bytes
    from headwater.training.context import TrainingContext
    from headwater.training.memory_estimate import SCRATCH_BYTES, step_bytes, synthetic

    return_freed_memory()
    changes = [f"data.max_tokens={tokens}", *(MODES | FURTHER)[mode]]
    context = TrainingContext.open(load_federation(Path(FILES[model]), changes))
    assert context.model is not None
    method = "one" if "one" in context.loaded.settings.methods else "default"
    base, loading = resident_base(context), status_bytes("VmHWM")
    if mode == "inference":
        model_ = context.model
        with torch.no_grad():
            model_.loss(synthetic(model_, 1, 2))
        with torch.inference_mode():
            traced = live_peak(lambda: model_.loss(synthetic(model_, batch, tokens)))
        expected = traced + SCRATCH_BYTES
        for _ in range(2):
            with torch.inference_mode():
                context.model.loss(synthetic(context.model, batch, tokens)).item()
    else:
        plan = plan_of(context.loaded.settings, context.spec, method)
        traced = step_bytes(context.model, plan, batch, tokens)
        expected = predicted(context, method, batch)
        train_two_steps(context, method, batch)
    peak = status_bytes("VmHWM")
    foreseen = max(loading, base + expected)
    mib = 2.0**20
    return {
        "loaded_mib": round(base / mib, 1),
        "loading_peak_mib": round(loading / mib, 1),
        "traced_mib": round(traced / mib, 1),
        "predicted_mib": round(foreseen / mib, 1),
        "peak_mib": round(peak / mib, 1),
        "off_percent": round(100 * (foreseen / peak - 1), 1),
    }


def _ratios(rows: list[dict[str, Any]], model: str, tokens: int) -> dict[str, Any]:
    of = {r["mode"]: r for r in rows if (r["model"], r["tokens"]) == (model, tokens)}

    def ratio(a: str, b: str, key: str = "peak_mib") -> float | None:
        return round(of[a][key] / of[b][key], 3) if a in of and b in of and of[b][key] else None

    return {
        "model": model,
        "tokens": tokens,
        "zo_over_inference": ratio("mezo", "inference"),
        "backprop_over_zo": ratio("backprop", "mezo"),
        "backprop_over_zo_traced": ratio("backprop", "mezo", "traced_mib"),
        "forward_over_backprop": ratio("forward_gradient", "backprop"),
        "forward_over_backprop_traced": ratio("forward_gradient", "backprop", "traced_mib"),
    }


def _free_mib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
