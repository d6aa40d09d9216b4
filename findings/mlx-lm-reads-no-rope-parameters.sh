#!/usr/bin/env bash
# mlx-lm 0.32.2 reads `rope_theta` at the top of config.json; transformers 5 saves it under `rope_parameters`. A Llama
# whose folder transformers 5 wrote is run with mlx-lm's default of 10000, whatever it was trained with; nothing is said,
# and the answers of SmolLM2 (100000) are others than those of transformers. Granite, whose class has no default, is a
# TypeError. Copying the number to the top of config.json mends it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4
cat > "$work/seen.py" <<'PY'
import json
import sys

from mlx_lm.models.llama import ModelArgs
from transformers import LlamaConfig

given = {"rope_type": "default", "rope_theta": 100000.0}
LlamaConfig(rope_parameters=given).save_pretrained(sys.argv[1])
config = json.load(open(f"{sys.argv[1]}/config.json"))
read = ModelArgs.from_dict(config).rope_theta
mended = ModelArgs.from_dict(config | {"rope_theta": config["rope_parameters"]["rope_theta"]}).rope_theta
print(f"saved {config['rope_parameters']['rope_theta']:.0f}, read {read:.0f}, with it at the top {mended:.0f}")
PY
seen=$("$work/env/bin/python" "$work/seen.py" "$work/base" 2>/dev/null)
echo "$seen"
grep -q "saved 100000, read 10000, with it at the top 100000" <<< "$seen"
