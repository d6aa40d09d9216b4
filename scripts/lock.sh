#!/usr/bin/env bash
# Resolve pyproject.toml afresh and write constraints.txt. torch is pinned to the CPU build: a plain
# `torch` would bring gigabytes of CUDA.
set -euo pipefail
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$1" -m venv "$environment"
echo "torch==2.13.0+cpu" >"$environment/torch.txt"
"$environment/bin/pip" install --quiet -c "$environment/torch.txt" -e ".[simulation,datasets,gguf,ray,tensorboard,speed,privacy,dev]"
{
    echo "# Every version that Headwater is tested with, from \`make lock\`. Installed with: pip install -c constraints.txt"
    "$environment/bin/pip" freeze --exclude-editable
} >constraints.txt
