"""What decompressed folders mean to plain PEFT, for every kind of adapter that ``headwater merge`` takes."""

from __future__ import annotations

import pytest
import torch

import headwater
from headwater.experts.compress import Compeft, Exact, compress
from headwater.experts.decompress import decompress
from headwater.experts.expert_file import open_adapter
from headwater.merging.offline.peft_folder import PeftFolder
from tests.merging.offline.peft_cases import CASES, deltas, load, logits, save
from tests.merging.offline.test_against_peft import close

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", CASES)
def test_an_exact_file_gives_back_the_adapter(name, tmp_path):
    adapter = save(name, tmp_path / "a", seed=1)
    (tmp_path / "a.hw").write_bytes(compress(PeftFolder.open(adapter), Exact()))
    decompress(open_adapter(tmp_path / "a.hw"), tmp_path / "out")
    assert torch.equal(logits(name, load(name, tmp_path / "out")), logits(name, load(name, adapter)))


@pytest.mark.parametrize("name", CASES)
def test_a_ternary_file_is_one_adapter_to_peft_and_to_a_merge(name, tmp_path):
    file = tmp_path / "a.hw"
    file.write_bytes(compress(PeftFolder.open(save(name, tmp_path / "a", seed=1)), Compeft(0.3)))
    decompress(open_adapter(file), tmp_path / "out")
    of_peft = load(name, tmp_path / "out")
    headwater.merge([file], tmp_path / "merged")
    close(logits(name, load(name, tmp_path / "merged")), logits(name, of_peft))
    if CASES[name].delta:
        opened = open_adapter(file)
        for parameter, change in deltas(of_peft).items():
            module = parameter.removesuffix(".weight")
            if module.startswith("attention") or ".experts." in module:  # the logits above say it of them
                continue
            b, a = opened.factors(f"base_model.model.{module}")
            mine = torch.from_numpy(b @ a)
            transposed = CASES[name].settings.get("fan_in_fan_out") or "embed_tokens" in module
            close((mine.T if transposed else mine).reshape(change.shape), change)
