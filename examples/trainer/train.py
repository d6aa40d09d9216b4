"""A transformers Trainer as a client of a federation.

``python examples/trainer/train.py`` simulates federation.toml's four owners into runs/trainer;
``python examples/trainer/train.py agent.toml`` takes part in a server's federation as a device.
"""

import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import headwater.hf

HERE = Path(__file__).parent
BASE = HERE.parents[1] / ".cache" / "headwater" / "minilm"
LABELS = ["negative", "positive"]

tokenizer = AutoTokenizer.from_pretrained(BASE)
base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=len(LABELS))
model = get_peft_model(
    base,
    LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        layers_to_transform=[4, 5],
        lora_dropout=0.05,
    ),
)


def make_trainer(client, rows):
    """A client's name and its training rows to its Trainer: all of it is the script's."""
    dataset = [
        {**tokenizer(row["text"], truncation=True, max_length=48), "labels": LABELS.index(row["label"])}
        for row in rows
    ]
    args = TrainingArguments(
        HERE / "out",
        learning_rate=5e-3,
        per_device_train_batch_size=16,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    return Trainer(model, args, DataCollatorWithPadding(tokenizer), dataset)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(headwater.hf.federate(make_trainer, sys.argv[1]))
    run = headwater.hf.simulate(HERE / "federation.toml", make_trainer, "runs/trainer")
    print(f"{run.metric} on the test sentences, by round: {run.values}")
