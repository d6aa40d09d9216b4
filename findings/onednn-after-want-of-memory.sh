#!/usr/bin/env bash
# torch 2.13.0 on CPUs (x86-64): where oneDNN once lacks the memory for a kernel that it compiles (a limit such as
# ulimit -d; strict overcommit), GELU raises "could not create a primitive" for the rest of the process, for every
# shape that it has not seen before, though memory is there again. Code that answers want of memory with a smaller
# batch never finds one that fits. A new process mends it; so does torch.backends.mkldnn.flags(enabled=False), with
# other last digits. Pass a Python that has torch 2.13.0, or one is made.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python=${1:-$work/env/bin/python}
if [ $# = 0 ]; then
  python3 -m venv "$work/env"
  "$python" -m pip install -q --disable-pip-version-check numpy torch==2.13.0
fi
cat > "$work/gelu.py" <<'PY'
import resource
import torch

torch.set_num_threads(1)
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


given = {rows: torch.randn(rows, 384) for rows in (32, *range(33, 64), 100)}


def gelu(rows):
    try:
        torch.nn.functional.gelu(given[rows])
        return "ok"
    except RuntimeError as error:
        return str(error)


print("before:", gelu(32))
spare = [torch.randn(8, 384) for _ in range(500)]  # the values find room where these were, and the kernel none
with open("/proc/self/status") as status:
    held = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held, resource.RLIM_INFINITY))
del spare
print("no more memory:", {gelu(rows)[:60] for rows in range(33, 64)})
resource.setrlimit(resource.RLIMIT_DATA, UNLIMITED)
print("memory again:", gelu(100), "| as before:", gelu(32))
with torch.backends.mkldnn.flags(enabled=False):
    print("without oneDNN:", gelu(100))
PY
"$python" -W ignore "$work/gelu.py" | tee "$work/said"
grep -q "^memory again: could not create a primitive | as before: ok$" "$work/said"
grep -q "^without oneDNN: ok$" "$work/said"
