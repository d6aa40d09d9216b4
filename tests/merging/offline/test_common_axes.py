"""CommonAxes against singular vectors of whole matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import headwater
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.common_axes import CommonAxes
from headwater.merging.offline.low_rank import EXACT, Truncation
from headwater.merging.offline.peft_folder import PeftFolder
from tests.merging.offline.small_adapters import WEIGHTS, adapter, edit

MODULE = "layers.0.q_proj"
MODULE_NAME = f"base_model.model.{MODULE}"
ROWS, COLUMNS = 24, 20


def changed(folder: Path, seed: int, sizes: tuple[float, float], *, rank: int = 2) -> Path:
    """An adapter whose B and A are multiplied with these."""
    adapter(folder, seed, modules=(MODULE,), rows=ROWS, columns=COLUMNS, rank=rank)
    for name, value in load_file(folder / WEIGHTS).items():
        edit(folder, **{name: np.float32(sizes["lora_A" in name]) * value})
    return folder


def axes_of(folders: list[Path]) -> tuple[CommonAxes, list[np.ndarray]]:
    """The axes, and each adapter's change as a whole matrix."""
    adapters = Adapters.open(folders, None)
    (module,) = adapters.modules
    axes = CommonAxes.of(adapters, module)
    assert axes is not None
    return axes, [b @ a for b, a in (folder.factors(module) for folder in adapters.folders)]


def basis(side: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return side[0] @ side[1]


sizes = st.tuples(st.sampled_from([1e-6, 1e-3, 1.0, 1e6]), st.sampled_from([1e-6, 1.0, 1e3]))


@settings(max_examples=25)
@given(st.lists(sizes, min_size=1, max_size=4), st.integers(0, 99))
def test_the_axes_are_those_of_whole_matrices_whatever_the_factors_length(tmp_path_factory, of_each, seed):
    place = tmp_path_factory.mktemp("axes")
    axes, changes = axes_of([changed(place / f"{i}", seed + i, both) for i, both in enumerate(of_each)])
    largest = np.linalg.norm(np.concatenate(changes), 2)  # what is below EXACT of it is left out
    u, v = basis(axes.left), basis(axes.right)
    assert np.allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-6)
    assert np.allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-6)
    for i, change in enumerate(changes):
        assert np.allclose(u @ axes.core(i) @ v.T, change, rtol=0, atol=2 * EXACT * largest)
        b, a, _ = axes.factors(axes.core(i), Truncation())
        assert np.allclose(b @ a, change, rtol=0, atol=2 * EXACT * largest)
    found = [np.square(np.linalg.svd(np.concatenate(changes, axis=1))[1])]
    found.append(np.square(np.linalg.svd(np.concatenate(changes, axis=0))[1]))
    for squares, turned in zip(found, (np.asarray, np.transpose), strict=True):
        gram = sum(turned(axes.core(i)) @ turned(axes.core(i)).T for i in range(len(changes)))
        expected = np.diag(squares[: len(gram)])
        assert np.allclose(gram, expected, rtol=0, atol=1e-7 * squares[0])


def test_equal_adapters_have_equal_coordinates_to_the_bit(tmp_path):
    folders = [changed(tmp_path / f"{i}", seed, (1.0, 1.0)) for i, seed in enumerate((1, 1, 2, 1))]
    axes, changes = axes_of(folders)
    same = [axes.core(i) for i, change in enumerate(changes) if np.array_equal(change, changes[0])]
    others = [change for change in changes if not np.array_equal(change, changes[0])]
    assert {len(same), len(others)} == {1, 3}
    if len(same) == 1:  # the order is that of digests
        same = [axes.core(i) for i, change in enumerate(changes) if np.array_equal(change, others[0])]
    assert all(np.array_equal(core, same[0]) for core in same)


def test_adapters_that_change_nothing_have_no_content(tmp_path):
    axes, _ = axes_of([changed(tmp_path / f"{i}", i, (0.0, 1.0)) for i in range(2)])
    b, a, _ = axes.factors(axes.core(0) + axes.core(1), Truncation())
    assert not (b @ a).any()


@pytest.mark.parametrize(("rank", "there"), [(9, True), (10, False)])
def test_there_are_none_where_ranks_reach_a_side(tmp_path, rank, there):
    folders = [changed(tmp_path / f"{i}", i, (1.0, 1.0), rank=rank) for i in range(2)]
    adapters = Adapters.open(folders, None)
    assert (CommonAxes.of(adapters, adapters.modules[0]) is not None) == there


def test_axes_that_are_not_turned_span_the_changes(tmp_path):
    adapters = Adapters.open([changed(tmp_path / f"{i}", i, (10.0**i, 1.0)) for i in range(3)], None)
    axes = CommonAxes.of(adapters, MODULE_NAME, turned=False)
    assert axes is not None
    for i, folder in enumerate(adapters.folders):
        b, a = folder.factors(MODULE_NAME)
        again_b, again_a, _ = axes.factors(axes.core(i), Truncation())
        assert np.allclose(again_b @ again_a, b @ a, rtol=0, atol=1e-12 * np.abs(b @ a).max())


@pytest.mark.parametrize("left", [1e-3, 1e-5, 1e-7])
def test_what_ranks_that_cancel_leave_of_each_other_is_merged(tmp_path, left):
    """As of a difference of two adapters that are nearly the same, which PEFT saves side by side."""
    folders, changes = [], []
    for i in range(2):
        b, a = np.zeros((ROWS, 2)), np.random.default_rng(i).standard_normal(COLUMNS) / left
        b[i], b[5 + i, 1] = 1, left
        factors = {"lora_B.weight": b.astype("<f4"), "lora_A.weight": np.stack([a, -a]).astype("<f4")}
        folders.append(edit(changed(tmp_path / f"{i}", i, (1.0, 1.0)), **factors))
        opened = PeftFolder.open(folders[-1]).factors(MODULE_NAME)
        changes.append(opened[0] @ opened[1])
    headwater.merge(folders, tmp_path / "out")
    got = np.matmul(*PeftFolder.open(tmp_path / "out").factors(MODULE_NAME))
    expected = (changes[0] + changes[1]) / 2
    assert np.allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(0.0, 1e9), (1e9, 0.0)])
def test_a_factor_whose_partner_is_zero_hides_nobody(tmp_path, sizes):
    """As of adapters that were never trained: B is 0, and A is what it was drawn as."""
    folders = [changed(tmp_path / "zero", 1, sizes), changed(tmp_path / "small", 2, (1e-6, 1e-6))]
    for turned in (True, False):
        adapters = Adapters.open(folders, None)
        axes = CommonAxes.of(adapters, MODULE_NAME, turned=turned)
        assert axes is not None
        for i, folder in enumerate(adapters.folders):
            b, a = folder.factors(MODULE_NAME)
            again_b, again_a, _ = axes.factors(axes.core(i), Truncation())
            assert np.allclose(again_b @ again_a, b @ a, rtol=0, atol=1e-6 * 1e-12)
