"""The network that computes with any merge, beside adapters and merges that PEFT loads from disk."""

from __future__ import annotations

import pytest
import torch

from headwater.adapters.predict import Predictor
from headwater.errors import ModelError
from headwater.merging.offline.folder import merge_folders
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rules.linear import TaskArithmetic
from headwater.tasks.batches import collate
from headwater.training.merging.coefficients import Sums
from headwater.training.merging.rows import rows_of_files
from tests.training.merging import cases


def logits(network, values, examples):
    with torch.no_grad():
        return network.forward(values, collate(examples, network.pad)).logits


def loaded(folder, base, examples, pad):
    with torch.no_grad():
        return Predictor.open(folder, base=str(base)).forward(collate(examples, pad)).logits


def test_an_adapter_in_the_network_answers_as_peft_loads_it(place, pair, rows):
    for index, folder in enumerate(pair.adapters.folders):
        expected = loaded(folder.path, place / "bert", rows[0], pair.pad)
        torch.testing.assert_close(logits(pair, pair.own(index), rows[0]), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(
        logits(pair, pair.own(0), rows[0]), logits(pair, pair.own(1), rows[0]), atol=1e-2
    )


def test_a_sum_in_the_network_answers_as_its_folder_does(place, pair, rows, tmp_path):
    merge_folders(
        [f.path for f in pair.adapters.folders],
        tmp_path / "out",
        Recipe(TaskArithmetic()),
        weights=[0.7, 0.4],
    )
    values = Sums(pair).values(torch.tensor([0.7, 0.4]))
    # the folder's head is averaged by its coefficients, the network's by weight: put in the folder's
    head = cases.network([tmp_path / "out"], place / "bert")
    values |= head.averaged()
    torch.testing.assert_close(
        logits(pair, values, rows[0]), logits(head, head.own(0), rows[0]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "base", "table"),
    [
        ("causal-lm", "llama", {"rslora": True}),
        ("causal-lm", "gpt2", {}),  # weights stored [in, out]
        ("encoder", "bert", {}),  # a head of Headwater's own
        ("sequence-classification", "bert", {"dora": True}),
    ],
)
def test_so_does_an_adapter_of_any_kind_that_has_lora(tmp_path, kind, base, table):
    network = cases.network(cases.adapters(tmp_path, 2, base=base, kind=kind, **table), tmp_path / base)
    (examples,) = rows_of_files(network.predictor, [cases.rows(tmp_path / "r.jsonl")], labelled=True)
    for index, folder in enumerate(network.adapters.folders):
        expected = loaded(folder.path, tmp_path / base, examples[:2], network.pad)
        torch.testing.assert_close(
            logits(network, network.own(index), examples[:2]), expected, atol=1e-5, rtol=1e-5
        )


def test_adapters_that_do_not_say_how_rows_are_read_are_refused(place, tmp_path):
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / file).write_bytes((place / "a0" / file).read_bytes())
    with pytest.raises(ModelError, match=r"headwater\.json"):
        cases.network([tmp_path], place / "bert")
