"""TRL's SFTTrainer as a client, where TRL is installed (it is in no extra of ours)."""

from __future__ import annotations

import pytest

import headwater.hf
from headwater.config import load_federation
from headwater.hf.refused import require_federable, require_rows
from tests.support.runs import tiny_federation
from tests.support.tiny_models import tiny_llama

trl = pytest.importorskip("trl", reason="TRL is installed by hand: pip install trl")

TABLES = {
    "federation": {"rounds": 2},
    "model": {"kind": "causal-lm", "path": "llama"},
    "adapter": {"target_modules": ["q_proj", "v_proj"]},
    "data": {"kind": "causal-lm", "labels": None},
    "training": {"kind": "script", "learning_rate": None, "batch_size": None, "max_steps": 2},
}


def test_an_sft_trainer_that_wraps_its_own_model_is_a_client(tmp_path):
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_llama(tmp_path / "llama")
    file = tiny_federation(tmp_path, **TABLES)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    made = []

    def make(client, rows):
        """As TRL's users do: the Trainer attaches the adapter itself."""
        args = trl.SFTConfig(
            str(tmp_path / "out"), per_device_train_batch_size=4, max_length=32, report_to="none",
            learning_rate=1e-2, use_cpu=True, disable_tqdm=True, bf16=False,
        )  # fmt: skip
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        texts = datasets.Dataset.from_list([{"text": row["text"]} for row in rows])
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
        made.append(
            trl.SFTTrainer(base, args, train_dataset=texts, processing_class=tokenizer, peft_config=lora)
        )
        return made[-1]

    first = headwater.hf.simulate(load_federation(file), make, tmp_path / "a")
    assert first.summary["failures"] == []
    assert first.values[2] < first.values[0], "the loss falls"
    assert require_rows(require_federable(made[-1])) > 0
    second = headwater.hf.simulate(load_federation(file), make, tmp_path / "b")
    assert first.summary["adapter_sha256"] == second.summary["adapter_sha256"]
