#!/usr/bin/env bash
# transformers 5.23.0: AutoModel.from_config raises TypeError for a configuration that no model has been saved
# with, where a model type maps to two classes (Funnel: with and without a decoder): it iterates over
# config.architectures, which is None until save_pretrained sets it. FunnelModel(config) works, and so does
# AutoModel.from_pretrained on what it saved.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
"$work/env/bin/python" -W ignore - <<'PY'
import tempfile

import transformers
from transformers import AutoModel, FunnelConfig, FunnelModel

transformers.utils.logging.disable_progress_bar()
config = FunnelConfig(vocab_size=64, d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1],
                      num_decoder_layers=1)
try:
    outcome = type(AutoModel.from_config(config)).__name__
except TypeError as error:
    outcome = f"TypeError: {error}"
with tempfile.TemporaryDirectory() as folder:
    FunnelModel(config).save_pretrained(folder)
    loaded = type(AutoModel.from_pretrained(folder)).__name__
print("transformers", transformers.__version__, "from_config:", outcome, "| from_pretrained:", loaded)
assert outcome == "TypeError: 'NoneType' object is not iterable" and loaded == "FunnelModel"
PY
