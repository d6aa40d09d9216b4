#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU: the 4-bit code of a value hangs on whether its block is full. In a block of `blocksize`
# values a value is multiplied by fp32(1/absmax), in a shorter last block it is divided by absmax (backends/default:
# quantize_4bit), and near the middle between two levels the two round to other sides. So the same 63 values get other
# codes when a zero is put behind them, and whoever reproduces the codes, or compares a tensor with a padded
# copy of it, must know the length. There is no warning; the error is half a level either way.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy bitsandbytes==0.50.2
cat > "$work/seen.py" <<'PY'
import bitsandbytes as bnb
import numpy as np
import torch

levels = bnb.functional.get_4bit_type("nf4", device="cpu").numpy()
middles = ((levels[:-1] + levels[1:]) / np.float32(2)).astype(np.float32)
draw, found = np.random.default_rng(0), 0
for _ in range(20):
    absmax = np.float32(draw.uniform(1, 2))
    at = middles * absmax
    near = np.concatenate([at, np.nextafter(at, np.float32(-9)), np.nextafter(at, np.float32(9))])
    short = np.zeros(63, np.float32)
    short[0], short[1 : 1 + near.size] = absmax, near
    packed = [
        bnb.functional.quantize_4bit(torch.from_numpy(values), blocksize=64, quant_type="nf4")[0].reshape(-1)[:31]
        for values in (short, np.append(short, np.float32(0)))
    ]
    found += bool((packed[0] != packed[1]).any())
print(f"bitsandbytes {bnb.__version__}: a zero behind 63 values changed their nf4 codes: {found > 0}")
PY
seen=$("$work/env/bin/python" "$work/seen.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "bitsandbytes 0.50.2: a zero behind 63 values changed their nf4 codes: True" ]
