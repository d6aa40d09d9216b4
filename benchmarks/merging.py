"""Merging of adapters beside PEFT and mergekit: ``python benchmarks/merging.py`` → ``results/merging.json``.

Every contestant is a process of its own that reads the same folders and writes one; measured are its CPU
seconds (user and system) and its peak resident memory. ``--mergekit PYTHON`` names a Python with mergekit,
which cannot share an environment with PEFT's newest; without it that column is left out.

PEFT merges inside a model, so it is given one: of the base's shape, whose weights are never written and so
take no memory; loading a real base would come on top. mergekit gets the adapters as if they were models, and
a file of zeros as their base. Both merge A and B apart, so ``--space factors`` is the like of them; ``core``
is what Headwater does by itself.

Beside folders: the fold alone against PEFT's function, on the same values in memory; the online rules against
NumPy's ``acc += x``; and the exact mean of wide LoRA changes against the dense matrix and its SVD.
``--small`` is a trial of all this in a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from merging_in_memory import DENSITY, in_memory
from picture import bars
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results" / "merging.json"
SHAPES: Mapping[str, tuple[int, int, Mapping[str, tuple[int, int]]]] = {
    # rank, layers, and [out, in] of each module
    "minilm r=8": (8, 6, {"attention.self.query": (384, 384), "attention.self.value": (384, 384)}),
    "llama 1B r=16": (
        16,
        16,
        {
            "self_attn.q_proj": (2048, 2048),
            "self_attn.k_proj": (512, 2048),
            "self_attn.v_proj": (512, 2048),
            "self_attn.o_proj": (2048, 2048),
            "mlp.gate_proj": (8192, 2048),
            "mlp.up_proj": (8192, 2048),
            "mlp.down_proj": (2048, 8192),
        },
    ),
}
LAYER = {"minilm r=8": "encoder.layer", "llama 1B r=16": "model.layers"}

PEFT_PROGRAM = """
import sys, torch
from accelerate import init_empty_weights
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from peft import PeftModel
out, shape, *folders = sys.argv[1:]
torch.set_num_threads(1)
if shape.startswith("minilm"):
    kind = BertModel
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
else:
    kind = LlamaForCausalLM
    config = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                         num_attention_heads=32, num_key_value_heads=8, vocab_size=128256)
with init_empty_weights():
    model = kind(config)
model = model.to_empty(device="cpu")
peft = PeftModel.from_pretrained(model, folders[0], adapter_name="a0")
for number, folder in enumerate(folders[1:], 1):
    peft.load_adapter(folder, adapter_name=f"a{number}")
names = [f"a{n}" for n in range(len(folders))]
peft.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type="ties", density=%s)
peft.save_pretrained(out, selected_adapters=["merged"])
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mergekit", type=Path, help="a Python with mergekit")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="few adapters, written nowhere")
    options = parser.parse_args()
    rows = []
    many = (4, 8) if options.small else (100, 1000)
    few = (2,) if options.small else (20,)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for shape, counts in (("minilm r=8", many), ("llama 1B r=16", few)):
            for count in counts:
                folders = make_adapters(place / "adapters", shape, count)
                for name, command in contestants(
                    place, shape, folders, options.mergekit, alone=count == many[1]
                ):
                    rows.append(measured(place, name, shape, count, command, options.repeat))
                    print(json.dumps(rows[-1]), flush=True)
                shutil.rmtree(place / "adapters")
        rows += products(place, options.repeat, small=options.small)
    rows += in_memory(options.repeat, small=options.small)
    if options.small:
        return
    RESULTS.write_text(
        json.dumps(
            {
                "machine": {"arch": platform.machine(), "cpus": os.cpu_count(), "numpy": np.__version__},
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )
    for shape in SHAPES:
        shown = {
            r["contestant"]: r["cpu_s_all"] for r in rows if r["shape"] == shape and r["adapters"] <= 100
        }
        path = RESULTS.with_name(f"merging-{shape.split()[0]}.svg")
        path.write_text(bars(f"TIES of {shape} adapters, from folders to a folder: CPU seconds", shown))


def make_adapters(place: Path, shape: str, count: int) -> list[Path]:
    """Adapters that PEFT loads, of normal numbers."""
    rank, layers, modules = SHAPES[shape]
    draw = np.random.default_rng(0)
    folders = []
    for number in range(count):
        folder = place / f"{number:04}"
        folder.mkdir(parents=True)
        tensors = {}
        for layer in range(layers):
            for module, (rows, columns) in modules.items():
                key = f"base_model.model.{LAYER[shape]}.{layer}.{module}"
                tensors[f"{key}.lora_A.weight"] = 0.01 * draw.standard_normal((rank, columns), np.float32)
                tensors[f"{key}.lora_B.weight"] = 0.01 * draw.standard_normal((rows, rank), np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": [m.rpartition(".")[2] for m in modules],
            "base_model_name_or_path": shape,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)
    return folders


def contestants(
    place: Path, shape: str, folders: Sequence[Path], mergekit: Path | None, *, alone: bool
) -> list[tuple[str, list[str]]]:
    """Each contestant's name and command line, which writes ``place/out``."""
    out, paths = str(place / "out"), [str(folder) for folder in folders]
    ours = [
        sys.executable,
        "-m",
        "headwater",
        "merge",
        *paths,
        "-o",
        out,
        "--rule",
        "ties",
        "--density",
        str(DENSITY),
    ]
    found = [
        ("headwater, factors", [*ours, "--space", "factors"]),
        ("headwater, core", [*ours, "--rank", "16"]),
    ]
    if alone:
        return found
    program = textwrap.dedent(PEFT_PROGRAM) % DENSITY
    found.append(("PEFT", [sys.executable, "-c", program, out, shape, *paths]))
    if mergekit is not None:
        found.append(("mergekit", _mergekit(place, mergekit, folders)))
    return found


def _mergekit(place: Path, python: Path, folders: Sequence[Path]) -> list[str]:
    from safetensors.numpy import load_file

    first = load_file(folders[0] / "adapter_model.safetensors")
    save_file({name: np.zeros_like(value) for name, value in first.items()}, place / "zero.safetensors")
    models = [
        {
            "model": str(folder / "adapter_model.safetensors"),
            "parameters": {"weight": 1.0, "density": DENSITY},
        }
        for folder in folders
    ]
    config = {
        "merge_method": "ties",
        "models": models,
        "base_model": str(place / "zero.safetensors"),
        "parameters": {"normalize": True},
        "dtype": "float32",
    }
    (place / "mergekit.yml").write_text(json.dumps(config))  # JSON is YAML
    return [str(python.with_name("mergekit-pytorch")), str(place / "mergekit.yml"), str(place / "out")]


LAUNCHER = """
import os, sys
nothing = os.open(os.devnull, os.O_WRONLY)
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 1)])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status != 0)
"""
"""On Linux a peak begins with that of the process that started it: this one is small."""


def measured(
    place: Path, name: str, shape: str, count: int, command: Sequence[str], repeat: int
) -> dict[str, object]:
    """Medians of some runs: CPU seconds and peak memory of the process."""
    seconds, peaks = [], []
    for _ in range(repeat):
        shutil.rmtree(place / "out", ignore_errors=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        ran = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCHER, *command],
            env=os.environ | threads, capture_output=True, cwd=place, text=True,
        )  # fmt: skip
        if ran.returncode:
            raise SystemExit(f"{name}: {ran.stderr[-2000:]}")
        cpu, peak = map(float, ran.stdout.split())
        seconds.append(cpu)
        peaks.append(peak / 1024)
    return {
        "contestant": name,
        "shape": shape,
        "adapters": count,
        "cpu_s": round(statistics.median(seconds), 2),
        "cpu_s_all": [round(s, 2) for s in seconds],
        "peak_mib": round(statistics.median(peaks), 1),
    }


PRODUCT_PROGRAM = """
import sys, numpy as np
from pathlib import Path
how, place = sys.argv[1], Path(sys.argv[2])
folders = sorted((place / "adapters").iterdir())
if how == "dense":
    import torch
    torch.set_num_threads(1)
    from safetensors.torch import load_file
    total = 0
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        b = next(v for k, v in tensors.items() if "lora_B" in k)
        a = next(v for k, v in tensors.items() if "lora_A" in k)
        total = total + b.double() @ a.double() / len(folders)
    u, s, vt = torch.linalg.svd(total, full_matrices=False)
    s = s.numpy()
else:
    from headwater.merging.offline.adapters import Adapters
    from headwater.merging.offline.common_axes import CommonAxes
    from headwater.merging.offline.low_rank import Truncation
    adapters = Adapters.open(folders, None)
    axes = CommonAxes.of(adapters, adapters.modules[0], turned=False)
    core = sum(map(axes.core, range(len(folders)))) / len(folders)
    s = np.linalg.svd(core)[1]
    b, a, _ = axes.factors(core, Truncation(16))
np.save(place / f"{how}.npy", s[:256])
"""


def products(place: Path, repeat: int, *, small: bool) -> list[dict[str, object]]:
    """The exact mean of 16 LoRA changes of a wide weight, beside the dense matrix and its SVD."""
    high, wide = (512, 1792) if small else (4096, 14336)
    shape = f"{high}x{wide} r=16"
    adapters = place / "adapters"
    draw = np.random.default_rng(1)
    for number in range(16):
        (adapters / f"{number:02}").mkdir(parents=True)
        tensors = {
            "base_model.model.up.lora_A.weight": draw.standard_normal((16, wide), np.float32),
            "base_model.model.up.lora_B.weight": draw.standard_normal((high, 16), np.float32),
        }
        save_file(tensors, adapters / f"{number:02}" / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "base_model_name_or_path": shape}
        (adapters / f"{number:02}" / "adapter_config.json").write_text(json.dumps(config))
    rows = []
    for how, times in (("headwater", repeat), ("dense", 1)):
        command = [sys.executable, "-c", PRODUCT_PROGRAM, how, str(place)]
        rows.append(measured(place, how, shape, 16, command, times))
        print(json.dumps(rows[-1]), flush=True)
    ours, dense = np.load(place / "headwater.npy"), np.load(place / "dense.npy")
    rows[0]["singular_values_off"] = float(np.abs(ours - dense[: len(ours)]).max() / dense[0])
    return rows


if __name__ == "__main__":
    main()
