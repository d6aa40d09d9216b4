#!/usr/bin/env bash
# bitsandbytes 0.50.2, on a processor with AVX512-BF16: once a Linear4bit has computed in eval mode without
# gradients, it never lets a gradient through again, in train mode neither. Its weights were packed for a kernel that
# has no backward (nn/modules.py: Linear4bit.forward packs, train() does not unpack; autograd/_functions.py:
# matmul_4bit asks for the packing before it asks for gradients). Whoever evaluates before or between steps, as
# trainers do, trains on nothing from then on: with PEFT's LoRA all gradients below the last such layer are None. There
# is no error, only torch's warning that an autograd kernel was not registered. Elsewhere the layer stays differentiable.
set -euo pipefail
if ! grep -q avx512_bf16 /proc/cpuinfo; then echo "this processor has no AVX512-BF16: nothing to see here"; exit 0; fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy bitsandbytes==0.50.2
cat > "$work/seen.py" <<'PY'
import warnings

import bitsandbytes as bnb
import torch

warnings.simplefilter("ignore")
layer = bnb.nn.Linear4bit(128, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
layer.weight = bnb.nn.Params4bit(torch.randn(128, 128), requires_grad=False, quant_type="nf4")
layer.to("cpu")


def reaches() -> bool:
    x = torch.randn(4, 128, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    return x.grad is not None


layer.train()
before = reaches()
layer.eval()
with torch.no_grad():
    layer(torch.randn(4, 128, dtype=torch.bfloat16))
layer.train()
print(f"bitsandbytes {bnb.__version__}: a gradient before an evaluation {before}, after it {reaches()}")
PY
seen=$("$work/env/bin/python" "$work/seen.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "bitsandbytes 0.50.2: a gradient before an evaluation True, after it False" ]
