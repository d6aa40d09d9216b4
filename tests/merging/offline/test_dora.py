"""DoRA through a merge: in plain PEFT each row of a weight has the mean length, or the merge is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import headwater
from headwater.errors import ConfigError
from tests.merging.offline.peft_cases import WEIGHTS, base, load, logits, save

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SHARES, CONFIG, PREFIX = (0.75, 0.25), "adapter_config.json", "base_model.model."
A, B, LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
Values = dict[str, torch.Tensor]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [save("dora", tmp_path / str(seed), seed=seed) for seed in (1, 2)]


def read(folder: Path) -> tuple[Values, float]:
    """The tensors, float64, and the scale s."""
    config = json.loads((folder / CONFIG).read_text())
    values = {name: value.double() for name, value in load_file(folder / WEIGHTS).items()}
    return values, config["lora_alpha"] / config["r"]


def mixed(folders: list[Path], name: str) -> torch.Tensor:
    return sum(share * read(folder)[0][name] for share, folder in zip(SHARES, folders, strict=True))


def changes(folders: list[Path]) -> Values:
    """The weighted mean of s·B·A by module."""
    found: Values = {}
    for share, folder in zip(SHARES, folders, strict=True):
        values, scale = read(folder)
        for name in [name.removesuffix(A) for name in values if name.endswith(A)]:
            change = share * scale * values[name + B] @ values[name + A]
            found[name] = found[name] + change if name in found else change
    return found


def expected(folders: list[Path], delta: Values) -> torch.Tensor:
    """Logits of the base with W = m·(W₀ + Δ)/‖W₀ + Δ‖ by rows, in arXiv 2402.09353 equation 5."""
    model = base("llama").double()
    with torch.no_grad():
        for name, change in delta.items():
            weight = model.get_submodule(name.removeprefix(PREFIX)).weight
            moved = weight + change
            weight.copy_(mixed(folders, name + LENGTHS)[:, None] * moved / moved.norm(dim=1, keepdim=True))
    return logits("dora", model)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("space", ["product", "core", "stack", "factors"])
def test_a_mean_has_the_mean_change_and_the_mean_lengths(
    space: str, folders: list[Path], tmp_path: Path
) -> None:
    headwater.merge(folders, tmp_path / "out", weights=list(SHARES), space=space)
    delta = changes(folders)
    if space == "factors":
        scale = read(folders[0])[1]
        delta = {name: scale * mixed(folders, name + B) @ mixed(folders, name + A) for name in delta}
    close(logits("dora", load("dora", tmp_path / "out")), expected(folders, delta))


@pytest.mark.parametrize(
    ("rule", "space"), [("ties", "core"), ("ties", "factors"), ("knots", "core"), ("karcher", "product")]
)
def test_other_rules_change_the_direction_as_lora(
    rule: str, space: str, folders: list[Path], tmp_path: Path
) -> None:
    plain = []
    for folder in folders:  # the same factors as LoRA, whose merges are compared with dense ones elsewhere
        plain.append(tmp_path / f"lora {folder.name}")
        plain[-1].mkdir()
        values = load_file(folder / WEIGHTS)
        save_file({k: v for k, v in values.items() if not k.endswith(LENGTHS)}, plain[-1] / WEIGHTS)
        config = json.loads((folder / CONFIG).read_text()) | {"use_dora": False}
        (plain[-1] / CONFIG).write_text(json.dumps(config))
    for given, out in ((folders, "out"), (plain, "lora")):
        headwater.merge(given, tmp_path / out, rule=rule, weights=list(SHARES), space=space)
    values, scale = read(tmp_path / "lora")
    names = [name.removesuffix(A) for name in values if name.endswith(A)]
    delta = {name: scale * values[name + B] @ values[name + A] for name in names}
    close(logits("dora", load("dora", tmp_path / "out")), expected(folders, delta))


@pytest.mark.parametrize(
    ("rule", "scale"), [("task_arithmetic", 1.0), ("mean", 2.0), ("tsv_m", 1.0), ("iso_c", 1.0)]
)
def test_what_adds_lengths_of_weights_is_refused(
    rule: str, scale: float, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="magnitudes are lengths of whole weights"):
        headwater.merge(folders, tmp_path / "out", rule=rule, scale=scale)
    assert not (tmp_path / "out").exists()
