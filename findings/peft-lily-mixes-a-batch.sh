#!/usr/bin/env bash
# PEFT 0.21.2, Lily: the router's softmax is averaged over all tokens of a batch. What a row gives depends on
# the rows beside it, and on padding; a served answer hangs on who else is asking.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" - <<'PY'
import peft, torch
from peft import LilyConfig, get_peft_model

torch.manual_seed(0)
model = get_peft_model(
    torch.nn.Sequential(torch.nn.Linear(8, 8)), LilyConfig(target_modules=["0"], r=4, init_weights=False)
).eval()
one, other = torch.randn(1, 3, 8), 5 * torch.randn(1, 3, 8)
alone, beside = model(one)[0], model(torch.cat([one, other]))[0]
moved = float((alone - beside).detach().abs().max())
print("peft", peft.__version__, "a row's output moved by its neighbour:", moved)
assert moved > 1e-3
PY
