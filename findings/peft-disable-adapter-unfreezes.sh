#!/usr/bin/env bash
# PEFT 0.21.2: after `with model.disable_adapter():` every adapter parameter requires gradients again, also
# those that were frozen before. FFA-LoRA (A fixed, B trained) so trains A from the first evaluation of the
# base on, for instance by a KL term against the reference model. Nothing warns.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" - <<'PY'
import peft, torch
from peft import LoraConfig, get_peft_model

model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"], r=2))
for name, parameter in model.named_parameters():
    if "lora_A" in name:
        parameter.requires_grad_(False)


def trained():
    return sorted(n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad)


before = trained()
with model.disable_adapter():
    model(torch.ones(1, 4))
after = trained()
print("peft", peft.__version__, "trained before:", before, "after:", after)
assert before == ["lora_B"] and after == ["lora_A", "lora_B"]
PY
