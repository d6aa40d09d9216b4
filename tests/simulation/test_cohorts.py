"""``[simulation] cohort``: a round's clients trained as one batch."""

from __future__ import annotations

import pytest
from safetensors.numpy import load_file

from headwater.client.execution.store import DirectoryStore
from headwater.config import load_federation
from headwater.errors import ConfigError, ModelError
from headwater.training.batched.trainer import BatchedBackpropTrainer
from tests.support.runs import bare_federation, resume, run, tiny_federation

COHORT = "simulation.cohort=8"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("f"), federation={"rounds": 2})


@pytest.fixture(scope="module")
def undisturbed(file, tmp_path_factory):
    return run(file, tmp_path_factory.mktemp("r") / "a", COHORT)[0]


def test_a_run_ends_where_clients_one_by_one_end(file, tmp_path):
    dense = ("codec.up={ kind = 'dense' }", "federation.rounds=1")
    run(file, tmp_path / "a", COHORT, *dense)
    run(file, tmp_path / "b", *dense)
    one, other = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in "ab")
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values == pytest.approx(other[name], abs=1e-4)


def test_a_round_that_was_cut_off_trains_the_same_clients_together_again(
    file, undisturbed, tmp_path, monkeypatch
):
    """One has kept what it answered: it is trained beside the others all the same, for their sake."""
    saves, save = [], DirectoryStore.save

    def killed(self, *arguments):
        saves.append(arguments[0])
        if len(saves) == 5:  # in round 2, after the first client
            raise SystemExit(9)
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "save", killed)
        with pytest.raises(SystemExit):
            run(file, tmp_path / "b", COHORT)
    assert len(set(saves[:3])) == 3
    groups, together = [], BatchedBackpropTrainer._together
    monkeypatch.setattr(
        BatchedBackpropTrainer,
        "_together",
        lambda self, tasks, key: groups.append([t.client for t in tasks]) or together(self, tasks, key),
    )
    summary, _ = resume(tmp_path / "b")
    assert summary["adapter_sha256"] == undisturbed["adapter_sha256"]
    assert [sorted(group) for group in groups] == [["ann", "ben", "cleo"]]


def test_the_size_of_a_cohort_is_part_of_the_run(file):
    plain, cohort, one = (
        load_federation(file, s).sha256() for s in ((), (COHORT,), ("simulation.cohort=1",))
    )
    assert plain == one != cohort


@pytest.mark.parametrize("options", [{"workers": 2}, {"engine": "ray"}, {"engine": "network"}])
def test_a_cohort_is_in_one_process(file, tmp_path, options):
    with pytest.raises(ConfigError, match=r"--engine inprocess with --workers 1"):
        run(file, tmp_path / "b", COHORT, **options)


def test_what_cannot_be_joined_is_refused_before_the_first_round(file, tmp_path):
    with pytest.raises(ModelError, match="DoRA"):
        run(file, tmp_path / "b", COHORT, "adapter.dora=true")
    with pytest.raises(ConfigError, match=r"training\.kind 'noop'"):
        run(bare_federation(tmp_path / "bare"), tmp_path / "c", COHORT)
