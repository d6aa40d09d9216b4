"""merged_readme(): the README of a merged adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COMMON = "AutoModel"
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def merged_readme(
    config: Mapping[str, Any],
    rule: str,
    weights: Mapping[str, float],
    notes: Sequence[str],
    *,
    predict: bool,
) -> str:
    """Markdown: of what the adapter was merged, and the lines that load it.

    Args:
        config: the content of ``adapter_config.json``.
        rule: the name of the merge rule.
        weights: of the adapters, by folder.
        notes: what the user must know, a sentence each.
        predict: whether ``headwater predict`` reads the folder.
    """
    base = str(config.get("base_model_name_or_path") or "BASE")
    kind = _CLASSES.get(str(config.get("task_type")), _COMMON)
    rows = "\n".join(f"| {_cell(_short(path))} | {weight:.6g} |" for path, weight in weights.items())
    said = "".join(f"- {_cell(note)}\n" for note in notes)
    code = "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {kind}",
            "",
            f"base = {kind}.from_pretrained({json.dumps(base)})",
            'model = PeftModel.from_pretrained(base, ".").eval()',
        ]
    )
    ask = "\nOr `headwater predict . TEXT`, which reads texts as training read them.\n" if predict else ""
    return (
        f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\ntags: [headwater, merge]\n---\n\n"
        f"# {len(weights)} adapters merged by {rule}\n\n| adapter | weight |\n|---|---|\n{rows}\n\n"
        f"`merge.json` has all settings.\n\n{said}\n## Load\n\n```python\n{code}\n```\n{ask}"
    )


def _short(path: str) -> str:
    """The end of a path: not where somebody keeps files."""
    return "/".join(Path(path).parts[-2:])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
