#!/usr/bin/env bash
# PEFT 0.21.2: trainable_token_indices on a base whose output layer is tied to its embedding and has a bias (every
# BERT for masked tokens) computes the output without that bias: the model is another one before any training.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" - <<'PY'
import copy

import peft, torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM

torch.manual_seed(0)
base = BertForMaskedLM(
    BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
).eval()
bias = base.cls.predictions.decoder.bias
bias.data.normal_()  # as any trained BERT has it
tokens = torch.arange(8)[None]
want = base(tokens).logits
config = LoraConfig(r=4, target_modules=["query"], trainable_token_indices=[6, 7])
got = get_peft_model(copy.deepcopy(base), config).eval()(tokens).logits
moved = float((got - want).detach().abs().max())
print("peft", peft.__version__, "logits moved before training:", moved)
assert moved > 0.5 and torch.allclose(got + bias, want, atol=1e-4)
PY
