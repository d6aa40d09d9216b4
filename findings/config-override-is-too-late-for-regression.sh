#!/usr/bin/env bash
# transformers 5.23.0: AutoConfig.from_pretrained(folder, num_labels=1, problem_type="regression") raises where the
# folder's config.json says problem_type "single_label_classification": the saved value is checked against the new
# number of labels before the override replaces it. Loading first and setting both attributes afterwards works,
# and so does the same override on a folder whose config.json has no problem_type.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
"$work/env/bin/python" -W ignore - <<'PY'
import tempfile

import transformers
from transformers import AutoConfig, BertConfig

config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


def overridden(**saved):
    with tempfile.TemporaryDirectory() as folder:
        for name, value in saved.items():
            setattr(config, name, value)
        config.save_pretrained(folder)
        try:
            return AutoConfig.from_pretrained(folder, num_labels=1, problem_type="regression").problem_type
        except Exception as error:
            return type(error).__name__


with_type, without = overridden(problem_type="single_label_classification"), overridden(problem_type=None)
with tempfile.TemporaryDirectory() as folder:
    config.problem_type = "single_label_classification"
    config.save_pretrained(folder)
    later = AutoConfig.from_pretrained(folder)
    later.problem_type, later.num_labels = "regression", 1
print("transformers", transformers.__version__, "| saved type:", with_type, "| none saved:", without,
      "| set later:", later.problem_type, later.num_labels)
assert with_type != "regression" and without == "regression" and later.num_labels == 1
PY
