"""Rules that look at LoRA's factors, or give an adapter back, against formulas on whole matrices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import headwater
from headwater.cli.main import main
from headwater.errors import ConfigError, DecodeError
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.reversible import STORE
from headwater.merging.offline.rules.compressed.copa import Copa
from headwater.merging.offline.rules.compressed.one_bit import OneBit
from headwater.merging.offline.rules.compressed.rmm import Rmm
from headwater.merging.offline.rules.compressed.twin import Twin
from headwater.merging.offline.rules.linear import Mean
from headwater.merging.offline.tensor_file import TensorFile, TensorWriter
from tests.laws.offline_rule_laws import Bench, Floats, bench, require_close
from tests.merging.offline import factor_oracles as oracle
from tests.merging.offline.rule_runs import ONE, SHARES, WIDE, adapters, close, merged

KEY = f"base_model.model.{ONE}"


def raw(folder: Path) -> tuple[Floats, Floats]:
    return PeftFolder.open(folder).factors(KEY)


class TestAgainstWholeMatrices:
    @pytest.mark.parametrize("fraction", [0.2, 0.6, 1.0])
    def test_twin(self, fraction: float) -> None:
        got, taus = merged(Twin(exclusive=fraction), WIDE, [2, 3, 1], [5, 3, 2])
        close(got, oracle.twin(taus, SHARES, fraction))
        if fraction == 1:
            close(got, sum(p * tau for p, tau in zip(SHARES, taus, strict=True)))

    def test_one_bit(self) -> None:
        got, taus = merged(OneBit(), WIDE, [2, 3, 1], [5, 3, 2])
        close(got, oracle.one_bit(taus, SHARES, [2, 3, 1]))
        crowded, taus = merged(OneBit(), WIDE, [5, 5, 5])
        close(crowded, oracle.one_bit(taus, [1 / 3] * 3, [5, 5, 5]))

    @pytest.mark.parametrize(("density", "compensated"), [(0.2, 0.2), (0.5, 0.5), (1.0, 1.0), (0.03, 0.2)])
    def test_copa_on_the_factors_of_the_files_and_on_balanced_ones(
        self, density: float, compensated: float
    ) -> None:
        rule = Copa(density=density, compensated=compensated)
        with bench() as on:
            made = [folder for folder, _ in adapters(on, WIDE, [4, 4, 4])]
            pairs = [raw(folder) for folder in made]
            got = on.merge(rule, made, [5, 3, 2], space="factors")[KEY]
            close(got, oracle.copa(pairs, SHARES, density, compensated))
        got, taus = merged(rule, WIDE, [2, 3, 1], [5, 3, 2])
        close(got, oracle.copa([oracle.balanced(tau, 3) for tau in taus], SHARES, density, compensated))

    def test_copa_with_rows_of_which_nothing_is_left_is_finite_and_the_authors_formula_is_not(self) -> None:
        b, a = np.ones((3, 2)), np.array([[4.0, 3.0, 2.0], [0.1, 0.1, 0.1]])
        rule = Copa(density=0.5)
        up, down = rule.merge(np.stack([b, b]), np.stack([a, a]), np.array([0.5, 0.5]))
        assert np.isfinite(up).all()
        assert down[0].tolist() == a[0].tolist()
        with np.errstate(divide="ignore", invalid="ignore"):
            theirs = np.abs(a).sum(axis=1) / np.abs(down).sum(axis=1)
            assert np.isinf(theirs[1])
            assert np.isnan(2 * theirs[1] * 1.0 / (2 * theirs[1]))

    @pytest.mark.parametrize("directions", [1, 2])
    def test_rmm(self, directions: int) -> None:
        rule = Rmm(directions=directions)
        with bench() as on:
            made = adapters(on, WIDE, [3, 2, 3, 1])
            folders, taus = [folder for folder, _ in made], [tau for _, tau in made]
            pairs, shares = [oracle.balanced(tau, 3) for tau in taus], [0.4, 0.3, 0.2, 0.1]
            for task in (1, 3):
                got = on.merge(rule, folders, [4, 3, 2, 1], task=task)[KEY]
                close(got, oracle.rmm(pairs, shares, directions, task - 1))
            got = on.merge(rule, folders, [4, 3, 2, 1])[KEY]
            b, a = (
                sum(p * f for p, f in zip(shares, some, strict=True)) for some in zip(*pairs, strict=True)
            )
            close(got, b @ a)


class TestAdaptersThatAreHadBack:
    def test_all_directions_give_each_adapter_whole(self) -> None:
        with bench() as on:
            folders = on.random(3, 4)
            for rule in (Rmm(directions=3), Twin(exclusive=1)):
                for task, folder in enumerate(folders, start=1):
                    require_close(on.merge(rule, folders, task=task), on.changes(folder), 1e-5)

    @pytest.mark.parametrize("shape", [(1, 7), (9, 1)])
    def test_a_weight_of_one_row_or_column_too(self, shape: tuple[int, int]) -> None:
        with bench() as on:
            made = adapters(on, shape, [1, 1, 1])
            folders = [folder for folder, _ in made]
            for task, (_, tau) in enumerate(made, start=1):
                close(on.merge(Twin(exclusive=1), folders, task=task)[KEY], tau)

    @pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
    def test_the_scale_is_of_vectors_as_of_matrices(self, scale: float, tmp_path: Path) -> None:
        folders, name = [], "base_model.model.m.k.ia3_l"
        for i in range(2):
            folder = tmp_path / f"{i}"
            folder.mkdir()
            save_file({name: np.float32([[1.5], [0.5 + i]])}, folder / "adapter_model.safetensors")
            config = {"peft_type": "IA3", "target_modules": ["k"], "feedforward_modules": []}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            folders.append(folder)
        report = headwater.merge(folders, tmp_path / "out", rule="twin", task=2, scale=scale)
        assert report.notes[0] == f"adapter 2 of the 2, {folders[1]}, as the rule gives it back"
        got = load_file(tmp_path / "out" / "adapter_model.safetensors")[name]
        assert got[:, 0].tolist() == [1 + scale * 0.5, 1 + scale * 0.5]

    def test_fewer_directions_are_closer_to_the_adapter_than_the_mean_is(self) -> None:
        with bench() as on:
            folders = on.random(3, 5)
            own, mean = on.changes(folders[1]), on.merge(Mean(), folders)
            found = [mean, *(on.merge(Rmm(directions=n), folders, task=2) for n in (1, 2, 3))]
            off = [_distance(one, own) for one in found]
            assert off == sorted(off, reverse=True)
            assert off[2] < 0.8 * off[0]

    def test_the_folder_of_a_merge_gives_them_back_alone(self, tmp_path: Path) -> None:
        on = Bench(tmp_path)
        folders = on.random(3, 4)
        report = headwater.merge(folders, tmp_path / "all", rule="rmm", directions=2)
        assert any(STORE in note for note in report.notes)
        expected = [on.merge(Rmm(directions=2), folders, task=task) for task in (1, 2, 3, 4)]
        for folder in folders:
            (folder / "adapter_model.safetensors").unlink()
        for task in (1, 4):
            out = tmp_path / f"back{task}"
            command = ["merge", str(tmp_path / "all"), "--rule", "rmm", "--task", str(task), "-o", str(out)]
            assert main(command) == 0
            require_close(on.changes(out), expected[task - 1], 1e-5)
            assert json.loads((out / "merge.json").read_text())["task"] == task

    def test_what_is_kept_is_the_same_whatever_the_order_and_each_number_is_its_own(
        self, tmp_path: Path
    ) -> None:
        on = Bench(tmp_path)
        folders = on.random(3, 3)
        for out, order in (("one", [0, 1, 2]), ("two", [2, 0, 1])):
            headwater.merge([folders[i] for i in order], tmp_path / out, rule="rmm", directions=1)
        one, two = (TensorFile(tmp_path / out / STORE) for out in ("one", "two"))
        mean, coefficients = f"base_model.model.{next(iter(['layers.0.q']))} B mean", "B coefficients"
        assert np.array_equal(one.read(mean), two.read(mean))
        name = mean.replace("B mean", coefficients)
        assert np.array_equal(one.read(name)[[2, 0, 1]], two.read(name))
        bias = "base_model.model.layers.0.q.lora_B.bias"
        assert np.array_equal(one.read(f"3 {bias}"), two.read(f"1 {bias}"))

    def test_a_number_that_no_adapter_has_is_refused(self, tmp_path: Path) -> None:
        on = Bench(tmp_path)
        folders = on.random(3, 3)
        for task in (-1, 4):
            with pytest.raises(ConfigError, match="from 1 to 3"):
                on.merge(Twin(), folders, task=task)
        with pytest.raises(ConfigError, match="gives an adapter back"):
            on.merge(Mean(), folders, task=1)
        headwater.merge(folders, tmp_path / "all", rule="rmm")
        with pytest.raises(ConfigError, match="from 1 to 3"):
            headwater.merge([tmp_path / "all"], tmp_path / "out", rule="rmm", task=4)
        for bad in ({"rule": "twin"}, {"rule": "rmm", "scale": 2.0}):
            with pytest.raises(ConfigError, match="--rule rmm, without --scale"):
                headwater.merge([tmp_path / "all"], tmp_path / "out", task=1, **bad)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("change", ["missing", "shape", "bias", "empty", "fewer", "flat"])
    def test_a_store_of_another_merge_is_refused_and_nothing_written(
        self, change: str, tmp_path: Path
    ) -> None:
        on = Bench(tmp_path)
        headwater.merge(on.random(3, 3), tmp_path / "all", rule="rmm")
        store = TensorFile(tmp_path / "all" / STORE)
        kept = {name: store.read(name) for name in store.tensors}
        (a, b) = (next(n for n in kept if n.endswith(end)) for end in (" A basis", " B mean"))
        if change == "missing":
            del kept[a]
        elif change == "shape":
            kept[b] = kept[b][1:]
        elif change in ("fewer", "flat"):
            last = [n for n in kept if n.endswith(" coefficients")][-1]
            kept[last] = kept[last][:1] if change == "fewer" else kept[last].reshape(-1)
        elif change == "bias":
            kept = {n: v[1:] if n.startswith("2 ") else v for n, v in kept.items()}
        else:
            kept = {"1 x": np.zeros(1)}
        with TensorWriter(tmp_path / "all" / STORE) as file:
            for name, values in kept.items():
                file.add(name, values)
        expected = ConfigError if change == "empty" else DecodeError
        with pytest.raises(expected):
            headwater.merge([tmp_path / "all"], tmp_path / "out", rule="rmm", task=2)
        assert not (tmp_path / "out").exists()


def _distance(one: dict[str, Floats], two: dict[str, Floats]) -> float:
    return float(sum(np.square(one[name] - two[name]).sum() for name in two))


def test_copa_of_several_ranks_in_the_factors_of_the_files_is_refused() -> None:
    with bench() as on:
        made = [folder for folder, _ in adapters(on, WIDE, [2, 3])]
        with pytest.raises(ConfigError, match="rank 2"):
            on.merge(Copa(), made, space="factors")
