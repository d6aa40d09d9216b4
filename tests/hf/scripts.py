"""Scripts as owners write them: a tiny base, their own tokenisation, their own Trainer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from tests.support.runs import OWNERS, tiny_federation

LABELS = ["bad", "good"]
TABLES: dict[str, dict[str, Any]] = {
    "model": {"kind": "sequence-classification"},
    "training": {"kind": "script", "learning_rate": None, "batch_size": None},
}
"""What a tiny federation needs to leave training to scripts."""
OF_TRAINER = ("callbacks", "optimizers", "optimizer_cls_and_kwargs", "model_init")
logging.set_verbosity_error()
logging.disable_progress_bar()


def script_federation(folder: Path, *, owners: Mapping[str, int] = OWNERS, **tables: dict[str, Any]) -> Path:
    """A tiny federation whose clients train with scripts; ``tables`` change or add tables."""
    merged = {name: {**TABLES.get(name, {}), **tables.get(name, {})} for name in {**TABLES, **tables}}
    return tiny_federation(folder, owners=owners, **merged)


@functools.cache
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "bert")


def model(folder: Path, **changes: Any) -> Any:
    """The PEFT model of the tiny federation in ``folder``, as its owner makes it."""
    base = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=len(LABELS))
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    return get_peft_model(base, LoraConfig(**{**settings, **changes}))


def trainer(folder: Path, rows: Any, peft: Any, *, cls: type[Trainer] = Trainer, **more: Any) -> Trainer:
    """A Trainer over ``rows``; ``more`` are arguments of TrainingArguments, or of the Trainer itself."""
    own = {name: more.pop(name) for name in OF_TRAINER if name in more}
    settings = {
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "log_level": "error",
    }
    args = TrainingArguments(str(folder / "out"), **{**settings, **more})
    reads = tokenizer(folder)
    dataset = [{**reads(row["text"]), "labels": LABELS.index(row["label"])} for row in rows]
    return cls(peft, args, DataCollatorWithPadding(reads), dataset or None, **own)
