"""An accumulated step of a Trainer is as large as that of one batch of all its rows, or refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from headwater.errors import ConfigError
from headwater.hf.refused import require_federable

BERT = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
GPT2 = GPT2Config(
    vocab_size=64, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
ROWS = [[(7 * row + place) % 60 + 3 for place in range(8)] for row in range(6)]


class InOrder(Trainer):
    """Takes the rows as they stand."""

    def _get_train_sampler(self, *args, **more):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def step(tmp_path, kind, config, parts, divided):
    """What one step of SGD of six rows changes, in so many parts."""
    torch.manual_seed(0)
    model = kind(config)
    if divided:
        model.accepts_loss_kwargs = False
    labels = [i % 2 for i in range(6)] if kind is BertForSequenceClassification else ROWS
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(ROWS, labels, strict=True)]
    args = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=6 // parts, gradient_accumulation_steps=parts,
        learning_rate=0.1, optim="sgd", max_grad_norm=0, lr_scheduler_type="constant", report_to="none",
        disable_tqdm=True, save_strategy="no", logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    before = [p.detach().clone() for p in model.parameters()]
    trainer = InOrder(model, args, train_dataset=rows)
    refused = False
    try:
        require_federable(trainer)
    except ConfigError as error:
        refused = "gradient_accumulation_steps" in str(error)
    trainer.train()
    changed = [(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]
    return torch.cat(changed), refused


@pytest.mark.parametrize(
    ("kind", "config", "divided"),
    [
        (BertForSequenceClassification, BERT, False),
        (BertForSequenceClassification, BERT, True),
        (BertForMaskedLM, BERT, False),
        (LlamaForCausalLM, LLAMA, False),
        (GPT2LMHeadModel, GPT2, False),
    ],
)
def test_a_sum_of_parts_is_refused_and_a_mean_taken(tmp_path, kind, config, divided):
    whole, refused = step(tmp_path, kind, config, 1, divided)
    assert not refused
    parts, refused = step(tmp_path, kind, config, 3, divided)
    times = float(parts.norm() / whole.norm())
    assert times == pytest.approx(3.0 if refused else 1.0, rel=1e-3)
    assert refused == (kind in (BertForSequenceClassification, BertForMaskedLM) and not divided)
