"""Seconds of ``headwater export --for merged`` and of a plain copy of the base, in turn, in one run.

    python benchmarks/export.py .cache/headwater/smollm2

The base is in the page cache. Time is the processors' (user and system) and the clock's; medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADAPTERS: dict[str, tuple[str | list[str], int]] = {
    "q and v, rank 8": (["q_proj", "v_proj"], 8),
    "all-linear, rank 16": ("all-linear", 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--checked", action="store_true", help="compare logits with PEFT too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place), Path(place) / "out"
        start = [sys.executable, "-m", "headwater"]
        commands = {
            "cp": ["cp", "-rL", str(options.base), str(out)],
            "headwater --version": [*start, "--version"],
        }
        for name, (targets, rank) in ADAPTERS.items():
            adapter = write(options.base, folder / name, targets, rank)
            export = [*start, "export", str(adapter), "--for", "merged", "--base", str(options.base)]
            commands[name] = [*export, "-o", str(out), *([] if options.checked else ["--unchecked"])]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.times):
            for name, command in commands.items():
                subprocess.run(["rm", "-rf", str(out)], check=True)
                found[name].append(seconds(command))
    print(f"load {os.getloadavg()[0]:.1f}")
    copy = [statistics.median(of) for of in zip(*found["cp"], strict=True)]
    for name, times in found.items():
        clock, cpu = (statistics.median(of) for of in zip(*times, strict=True))
        by = f"clock {clock:6.2f} s ({clock / copy[0]:4.1f}x)  CPU {cpu:6.2f} s ({cpu / copy[1]:4.1f}x)"
        print(f"{name:22} {by}")


def seconds(command: list[str]) -> tuple[float, float]:
    """By the clock, and of the processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write(base: Path, folder: Path, targets: str | list[str], rank: int) -> Path:
    """An adapter with random values in B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
