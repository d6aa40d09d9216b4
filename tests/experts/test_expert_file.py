"""Compressed adapters: what comes back, in how many bytes, and that it merges as its folder does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headwater.compression.byte_reader import Reader
from headwater.errors import ConfigError, ModelError
from headwater.experts.compress import Compeft, Exact, Rounded, compress, tensors
from headwater.experts.decompress import decompress
from headwater.experts.describe import describe, loss
from headwater.experts.expert_file import open_adapter, opener
from headwater.experts.numbers import TYPES, bits_of, decode, encode, values_of
from headwater.experts.ternary_factors import ternary_factors
from headwater.merging.offline.folder import merge_folders
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rules.table import RULES

from . import small

ADAPTERS = {
    "lora": small.lora,
    "head": lambda folder: small.lora(folder, head=True),
    "ia3": small.ia3,
    "prompt": small.prompt,
    "embedding, convolution": small.embedding_and_convolution,
    "untouched": lambda folder: _untouched(folder),
}
CODECS = {"exact": Exact(), "bf16": Rounded(), "compeft": Compeft(0.3), "sparse": Compeft(0.05)}


def _untouched(folder: Path) -> Path:
    """LoRA as it starts: B is zero."""
    a = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    names = (f"{small.QUERY}.lora_A.weight", f"{small.QUERY}.lora_B.weight")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["query"]}
    return small.save(folder, config, dict(zip(names, (a, np.zeros((16, 4), np.float32)), strict=True)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(params=ADAPTERS)
def folder(request, tmp_path: Path) -> PeftFolder:
    return PeftFolder.open(ADAPTERS[request.param](tmp_path / "adapter"))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_compressing_is_a_projection(folder, codec, tmp_path):
    """What was decompressed compresses to the same bytes, and so does the file itself."""
    data = compress(folder, codec)
    assert compress(folder, codec) == data
    file = open_adapter(write(tmp_path / "a.hw", data))
    decompress(file, tmp_path / "out")
    assert compress(PeftFolder.open(tmp_path / "out"), codec) == data
    assert compress(file, codec) == data


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_file_reads_as_the_folder_that_it_decompresses_to(folder, codec, tmp_path):
    file = open_adapter(write(tmp_path / "a.hw", compress(folder, codec)))
    decompress(file, tmp_path / "out")
    out = PeftFolder.open(tmp_path / "out")
    assert (out.kind, out.base, out.plain) == (file.kind, file.base, file.plain)
    assert {m: p.rank for m, p in out.modules.items()} == {m: p.rank for m, p in file.modules.items()}
    for module in file.modules:
        for mine, its in zip(file.factors(module), out.factors(module), strict=True):
            np.testing.assert_array_equal(mine, its)
    for name in file.plain:
        np.testing.assert_array_equal(file.read(name), out.read(name))


def test_exact_gives_back_every_bit_in_its_type(folder, tmp_path):
    decompress(open_adapter(write(tmp_path / "a.hw", compress(folder, Exact()))), tmp_path / "out")
    out = PeftFolder.open(tmp_path / "out")
    assert tensors(out) == tensors(folder)
    for name in tensors(folder):
        np.testing.assert_array_equal(out.read(name), folder.read(name))
    for name, place in folder.file.tensors.items():
        assert out.file.tensors[name].dtype == place.dtype
    for key in ("r", "lora_alpha", "rank_pattern", "use_rslora", "target_modules", "num_virtual_tokens"):
        assert (out.config.get(key) or None) == (folder.config.get(key) or None)


def test_rounding_keeps_eight_bits(tmp_path):
    folder = PeftFolder.open(small.lora(tmp_path / "a", head=True))
    file = open_adapter(write(tmp_path / "a.hw", compress(folder, Rounded())))
    for name in tensors(folder):
        mine, its = folder.read(name), file.read(name)
        assert (np.abs(mine - its) <= 2.0**-8 * np.abs(mine)).all()
        assert not np.array_equal(mine, its)


def test_notes_without_the_card_come_back(tmp_path):
    folder = PeftFolder.open(small.lora(tmp_path / "a", head=True))
    decompress(open_adapter(write(tmp_path / "a.hw", compress(folder, Compeft()))), tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "headwater.json").read_text())
    assert notes["labels"] == ["no", "yes"]
    assert notes["base"] == {"path": "base"}
    assert notes["system"] is None
    assert "card" not in notes


@pytest.mark.parametrize("space", ["product", "core"])
def test_a_merge_of_files_is_the_merge_of_what_they_decompress_to(space, tmp_path):
    files, folders = [], []
    for seed in range(3):
        folder = PeftFolder.open(small.lora(tmp_path / f"a{seed}", seed=seed, head=True))
        files.append(write(tmp_path / f"{seed}.hw", compress(folder, Compeft(0.3))))
        decompress(open_adapter(files[-1]), tmp_path / f"out{seed}")
        folders.append(tmp_path / f"out{seed}")
    rule = RULES["mean" if space == "product" else "ties"]()
    merge_folders(files, tmp_path / "of-files", Recipe(rule, space), open_adapter=opener())
    merge_folders(folders, tmp_path / "of-folders", Recipe(rule, space))
    of_files, of_folders = (PeftFolder.open(tmp_path / name) for name in ("of-files", "of-folders"))
    for module in of_files.modules:
        mine, its = (np.matmul(*f.factors(module)) for f in (of_files, of_folders))
        np.testing.assert_allclose(mine, its, atol=1e-6)
    for name in of_files.plain:
        np.testing.assert_allclose(of_files.read(name), of_folders.read(name), atol=1e-6)


def test_files_and_folders_merge_together(tmp_path):
    folder = PeftFolder.open(small.lora(tmp_path / "a", seed=1))
    file = write(tmp_path / "b.hw", compress(PeftFolder.open(small.lora(tmp_path / "b", seed=2)), Exact()))
    merge_folders([folder.path, file], tmp_path / "out", Recipe(RULES["mean"]()), open_adapter=opener())
    merge_folders([folder.path, tmp_path / "b"], tmp_path / "same", Recipe(RULES["mean"]()))
    out, same = PeftFolder.open(tmp_path / "out"), PeftFolder.open(tmp_path / "same")
    for module in out.modules:
        np.testing.assert_allclose(
            np.matmul(*out.factors(module)), np.matmul(*same.factors(module)), atol=1e-6
        )


def test_an_origin_is_added_again_and_must_be_the_one(tmp_path):
    start = PeftFolder.open(small.lora(tmp_path / "start", seed=1))
    adapter = _moved(start, tmp_path / "a")
    data = compress(adapter, Compeft(1.0, start))
    path = write(tmp_path / "a.hw", data)
    file = open_adapter(path, start)
    assert compress(file, Compeft(1.0, start)) == data
    for name in tensors(start):  # every value moved by one magnitude: nothing is lost but float32's rounding
        np.testing.assert_allclose(file.read(name), adapter.read(name), atol=1e-6)
    with pytest.raises(ConfigError, match="--origin"):
        open_adapter(path)
    other = PeftFolder.open(small.lora(tmp_path / "other", seed=2))
    with pytest.raises(ModelError, match="other values"):
        open_adapter(path, other)
    with pytest.raises(ModelError, match=r"lora_A|no such tensor"):
        compress(adapter, Compeft(1.0, PeftFolder.open(small.ia3(tmp_path / "ia3"))))


def _moved(start: PeftFolder, folder: Path) -> PeftFolder:
    """An adapter each of whose values is 2⁻⁶ off from the start."""
    draw = np.random.default_rng(9)
    values = {
        name: (start.read(name) + draw.choice([-1, 1], shape) / 64).astype(np.float32)
        for name, shape in tensors(start).items()
    }
    return PeftFolder.open(small.save(folder, start.config, values))


def test_ternary_factors_of_a_ternary_change_lose_nothing():
    draw = np.random.default_rng(0)
    a, b = draw.choice([-1, 0, 1], (3, 40)), draw.choice([-0.25, 0, 0.25], (30, 3))
    found = ternary_factors(b.astype(float), a.astype(float), 0.01)
    np.testing.assert_array_equal((found.b * found.magnitudes) @ (found.a * found.magnitudes[:, None]), b @ a)


def test_scales_are_the_best_for_the_signs():
    """No other scale of a direction brings the product nearer."""
    draw = np.random.default_rng(1)
    b, a = draw.standard_normal((60, 4)), draw.standard_normal((4, 50))
    found = ternary_factors(b, a, 0.2)
    least = _error(b, a, found, found.magnitudes)
    for at in range(len(found.magnitudes)):
        for factor in (0.97, 1.03):
            other = found.magnitudes.copy()
            other[at] *= factor
            assert _error(b, a, found, other) > least


def _error(b, a, found, magnitudes) -> float:
    return float(np.linalg.norm(b @ a - (found.b * magnitudes) @ (found.a * magnitudes[:, None])))


def test_more_values_never_lose_more():
    """Past half of its values a direction's signs lose by each more: the density is a bound, not a duty."""
    draw = np.random.default_rng(3)
    b, a = draw.standard_normal((80, 5)), draw.standard_normal((5, 90))
    losses = []
    for density in (0.05, 0.2, 0.4, 0.6, 1.0):
        found = ternary_factors(b, a, density)
        assert np.count_nonzero(found.a) + np.count_nonzero(found.b) <= density * (a.size + b.size)
        losses.append(_error(b, a, found, found.magnitudes))
    assert losses == sorted(losses, reverse=True)


def test_the_product_loses_less_than_the_factors_as_they_are():
    """LoRA's A is random where training began: its own largest values say little of the change."""
    draw = np.random.default_rng(2)
    a = draw.uniform(-1, 1, (8, 300)) + 0.2 * draw.standard_normal((8, 1)) * draw.standard_normal((1, 300))
    b = draw.standard_normal((200, 8)) * 0.5 ** np.arange(8)
    found = ternary_factors(b, a, 0.1)
    of_product = _error(b, a, found, found.magnitudes) / np.linalg.norm(b @ a)
    kept = [np.where(np.abs(f) >= np.quantile(np.abs(f), 0.9), f, 0) for f in (b, a)]
    as_they_are = [np.sign(f) * np.abs(f[f != 0]).mean() for f in kept]
    of_factors = np.linalg.norm(b @ a - as_they_are[0] @ as_they_are[1]) / np.linalg.norm(b @ a)
    assert of_product < of_factors


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_numbers_are_lossless_in_every_type(name, count):
    kind = TYPES[name]
    draw = np.random.default_rng(count)
    values = draw.standard_normal(count) * np.exp2(draw.integers(-20, 10, count))
    values[: count // 5] = [0.0, -0.0, 6e-8, -1.0, 65504.0][: count // 5] if count == 5 else 0.0
    bits = bits_of(values, kind)
    data = encode(bits, kind)
    reader = Reader(data, "test")
    np.testing.assert_array_equal(decode(reader, count, kind), bits)
    reader.end()
    np.testing.assert_array_equal(bits_of(values_of(bits, kind), kind), bits)
    assert len(data) <= kind.width * (count + 1)


def test_normal_numbers_take_fewer_bytes_by_their_exponents():
    values = np.random.default_rng(0).standard_normal(100_000)
    assert len(encode(bits_of(values, TYPES["BF16"]), TYPES["BF16"])) < 1.35 * values.size
    assert len(encode(bits_of(values, TYPES["F32"]), TYPES["F32"])) < 3.35 * values.size


def test_ternary_parts_are_at_the_entropy_bound(tmp_path):
    draw = np.random.default_rng(0)
    names = (f"{small.QUERY}.lora_A.weight", f"{small.QUERY}.lora_B.weight")
    values = [draw.standard_normal(shape).astype(np.float32) for shape in ((8, 4096), (4096, 8))]
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["query"]}
    small.save(tmp_path / "a", config, dict(zip(names, values, strict=True)))
    data = compress(PeftFolder.open(tmp_path / "a"), Compeft(0.05))
    found = describe(open_adapter(write(tmp_path / "a.hw", data)))
    assert found.ternary is not None
    assert found.ternary.bytes < 1.02 * found.ternary.bound
    assert found.ternary.kept <= 0.05 * found.ternary.values + 1


def test_loss_is_the_distance_of_the_changes(tmp_path):
    folder = PeftFolder.open(small.embedding_and_convolution(tmp_path / "a"))
    file = open_adapter(write(tmp_path / "a.hw", compress(folder, Compeft(0.3))))
    changes = [
        np.concatenate([np.matmul(*f.factors(m)).ravel() for m in folder.modules]) for f in (folder, file)
    ]
    expected = np.linalg.norm(changes[0] - changes[1]) / np.linalg.norm(changes[0])
    assert loss(folder, file) == pytest.approx(expected, rel=1e-6)
    assert loss(folder, open_adapter(write(tmp_path / "b.hw", compress(folder, Exact())))) == 0


def test_a_field_that_may_change_what_an_adapter_does_is_refused_by_name(tmp_path):
    folder = PeftFolder.open(small.lora(tmp_path / "a", a_new_option=True))
    with pytest.raises(ModelError, match="a_new_option"):
        compress(folder, Exact())
    off = PeftFolder.open(small.lora(tmp_path / "b", a_new_option=None))
    assert compress(off, Exact())
