#!/usr/bin/env bash
# PEFT 0.21.2: init_lora_weights="olora" decomposes the weight of GPT-2's Conv1D as it is stored, d_in × d_out.
# Where the layer is square the model is another one before any training, without a warning; PiSSA transposes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" - <<'PY'
import copy

import peft, torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
base = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=32)).eval()
tokens = torch.arange(8)[None]
moved = {}
for start in ("pissa", "olora"):
    config = LoraConfig(r=4, target_modules=["attn.c_proj"], fan_in_fan_out=True, init_lora_weights=start)
    adapted = get_peft_model(copy.deepcopy(base), config).eval()
    moved[start] = float((adapted(tokens).logits - base(tokens).logits).detach().abs().max())
print("peft", peft.__version__, "logits moved before training:", moved)
assert moved["pissa"] < 1e-5 and moved["olora"] > 1e-2
PY
