"""Do compressed experts merge better than the originals? ``python benchmarks/experts.py``.

Eight experts: LoRA of MiniLM's last two layers, each on half of one domain's sentences, with one frozen head
for all. Each is compressed at three densities, by ``headwater compress`` and as ComPEFT's code does it, A and
B by their values; originals and forms are merged by three rules. Accuracy is that on sentences that no expert
saw, 300 of each domain. One thread. Writes ``benchmarks/results/experts.json`` and a picture.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from last_layers import CACHE, Judge, Texts, fitted_head, frozen, minilm, train
from picture import bars
from safetensors.numpy import save_file
from torch import nn

from headwater.compression.ternary import MINUS, PLUS, kept, select
from headwater.experts.compress import Compeft, compress
from headwater.experts.describe import loss
from headwater.experts.expert_file import open_adapter, opener
from headwater.merging.offline.folder import merge_folders
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rules.linear import Mean, TaskArithmetic
from headwater.merging.offline.rules.ties import Ties

RESULTS = Path(__file__).parent / "results" / "experts.json"
TRAIN, TEST, PROBED, EPOCHS = 500, 300, 200, 2
DENSITIES = (0.05, 0.2, 0.5)
RULES = {"mean": (Mean(), 1.0), "task_arithmetic": (TaskArithmetic(), 0.3), "ties": (Ties(), 1.0)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="keep the experts here, and take those that are there")
    parser.add_argument("--small", action="store_true", help="few sentences, written nowhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        base = minilm()
        if not (work / "sentences.pt").exists():
            torch.save(
                {name: vars(some) for name, some in _sentences(base, options.small).items()},
                work / "sentences.pt",
            )
        data = {name: Texts(**some) for name, some in torch.load(work / "sentences.pt").items()}
        names = [name for name in data if name.startswith("train")]
        head = fitted_head(base, [data[name] for name in names], PROBED)
        train(work, {name: [data[name]] for name in names}, {name: [head] for name in names}, EPOCHS)
        judge = Judge(base, data, dict.fromkeys(data, head))
        result = _measure(judge, [work / name for name in names], work)
    if options.small:
        return
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    rows = {f"{r['rule']}, {r['form']}": [100 * float(r["test"])] for r in result["merged"]}
    RESULTS.with_suffix(".svg").write_text(bars("Eight experts merged: mean accuracy, %", rows))


def _sentences(base: nn.Module, small: bool) -> dict[str, Texts]:
    """By ``train-DOMAIN-HALF``, and ``test-DOMAIN``."""
    draw = np.random.default_rng(1)
    rows = [
        json.loads(line)
        for name in ("train", "test")
        for line in (CACHE / "sentiment" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = {}
    for domain in sorted({row["domain"] for row in rows}):
        mine = [row for row in rows if row["domain"] == domain]
        order = iter(draw.permutation(len(mine)))
        for name in (f"train-{domain}-1", f"train-{domain}-2", f"test-{domain}"):
            count = 16 if small else TRAIN if name.startswith("train") else TEST
            chosen = [mine[next(order)] for _ in range(count)]
            labels = [int(row["label"] == "positive") for row in chosen]
            found[name] = frozen(base, [row["text"] for row in chosen], labels)
    return found


def _measure(judge: Judge, folders: list[Path], work: Path) -> dict[str, object]:
    start = PeftFolder.open(work / "start")
    test = [name for name in judge.data if name.startswith("test")]
    result: dict[str, object] = {
        "machine": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "base": judge.accuracy(None, test),
    }
    alone, merged = [], []
    for form, paths in _forms(folders, work).items():
        for name, (rule, scale) in RULES.items():
            out = work / f"merged {name} {form}"
            recipe, opened = Recipe(rule, scale=scale), opener(work / "start")
            merge_folders(paths, out, recipe, open_adapter=opened, overwrite=True)
            accuracy = judge.accuracy(PeftFolder.open(out), test)
            merged.append({"rule": name, "scale": scale, "form": form, "test": accuracy})
            print(merged[-1], flush=True)
        alone.append({"form": form} | _alone(judge, folders, [open_adapter(path, start) for path in paths]))
        print(alone[-1], flush=True)
    return result | {"alone": alone, "merged": merged}


def _alone(judge: Judge, folders: list[Path], opened: list[PeftFolder]) -> dict[str, float]:
    """What each expert is in this form, on its own domain: means over experts."""
    rows = [
        {
            "bytes": adapter.file.path.stat().st_size,
            "loss": loss(PeftFolder.open(folder), adapter),
            "test": judge.accuracy(adapter, [f"test-{folder.name.split('-')[1]}"]),
        }
        for folder, adapter in zip(folders, opened, strict=True)
    ]
    return {key: statistics.mean(row[key] for row in rows) for key in ("bytes", "loss", "test")}


def _forms(folders: list[Path], work: Path) -> dict[str, list[Path]]:
    """Originals, and files or folders of each form."""
    found = {"original": folders}
    for density in DENSITIES:
        found[f"{density}"] = [work / f"{folder.name} {density}.hw" for folder in folders]
        for folder, path in zip(folders, found[f"{density}"], strict=True):
            path.write_bytes(compress(PeftFolder.open(folder), Compeft(density)))
        found[f"{density}, A and B"] = [
            _as_they_are(folder, work / f"{folder.name} {density} as they are", density) for folder in folders
        ]
    return found


def _as_they_are(folder: Path, out: Path, density: float) -> Path:
    """ComPEFT of the values of A and B, as in the paper's code; the scale is the mean that is kept."""
    adapter, values = PeftFolder.open(folder), {}
    for name in adapter.file.tensors:
        flat = adapter.read(name).reshape(-1)
        symbols = select(flat, kept(flat.size, density))
        scale = np.abs(flat[symbols != 0]).mean()
        signs = (symbols == PLUS).astype(np.float32) - (symbols == MINUS).astype(np.float32)
        values[name] = np.float32(scale) * signs.reshape(adapter.file.tensors[name].shape)
    out.mkdir(exist_ok=True)
    save_file(values, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    return out


if __name__ == "__main__":
    main()
