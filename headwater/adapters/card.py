"""The README of an exported adapter: :func:`readme`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CLASSES = {
    "encoder": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
}


def readme(notes: Mapping[str, Any]) -> str:
    """Markdown: what the adapter is and the lines that load it without Headwater.

    Args:
        notes: the content of ``headwater.json``.
    """
    base = notes["base"]
    facts = {
        "base model": f"`{base['path']}`" + (f" at `{base['revision']}`" if base["revision"] else ""),
        "base sha256": f"`{base['sha256']}`",
        "adapter": f"`{json.dumps(notes['adapter'])}`",
        "adapter sha256": f"`{notes['adapter_sha256']}`",
        "labels": ", ".join(f"`{label}`" for label in notes["labels"] or ()) or "none",
        **{key: _shown(value) for key, value in notes["card"].items()},
    }
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items())
    front = json.dumps(base["path"])
    return (
        f"---\nbase_model: {front}\nlibrary_name: peft\ntags: [headwater, federated]\n---\n\n"
        f"# Adapter for {base['path']}\n\nTrained by a federation with Headwater; no training text is in "
        f"here.\n\n| | |\n|---|---|\n{table}\n\n## Load\n\n```python\n{loading_code(notes)}\n```\n"
    )


def loading_code(notes: Mapping[str, Any]) -> str:
    """Python that loads base and adapter from the adapter's folder and computes ``logits``."""
    base, kind = notes["base"], notes["kind"]
    arguments = [json.dumps(base["path"])]
    if base["revision"]:
        arguments.append(f"revision={base['revision']!r}")
    if base["layers"]:
        arguments.append(f"num_hidden_layers={base['layers']}")
    source = ", ".join(arguments)
    if kind == "sequence-classification":
        arguments += [f"num_labels={len(notes['labels'])}", "ignore_mismatched_sizes=True"]
    lines = [
        "import torch",
        f"from transformers import AutoTokenizer, {_CLASSES[kind]}",
        "from peft import PeftModel",
    ]
    if kind == "encoder":
        lines.append("from safetensors.torch import load_file")
    lines += [
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({source})",
        f"base = {_CLASSES[kind]}.from_pretrained({', '.join(arguments)})",
    ]
    if kind != "causal-lm":
        lines.append(f"tokenizer.pad_token_id = base.config.pad_token_id = {notes['pad_token_id']}")
    lines += [
        'model = PeftModel.from_pretrained(base, ".").eval()',
        'batch = tokenizer(["a text"], return_tensors="pt", padding=True)',
        'batch = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}',
    ]
    if kind == "encoder":
        lines += [
            'head = load_file("head.safetensors")',
            'mask = batch["attention_mask"].unsqueeze(-1).float()',
            "hidden = model(**batch).last_hidden_state[:, -mask.shape[1]:]",
            "mean = (hidden * mask).sum(1) / mask.sum(1)",
            'logits = mean @ head["weight"].T + head["bias"]',
        ]
    else:
        lines.append("logits = model(**batch).logits")
    if notes["labels"]:
        lines.append(f"print({notes['labels']!r}[logits[0].argmax()])")
    return "\n".join(lines)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
