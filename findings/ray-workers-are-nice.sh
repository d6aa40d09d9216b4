#!/usr/bin/env bash
# Ray 2.55.1: tasks and actors run at nice 15, whatever the priority of the process that starts Ray. Linux gives
# such a process about a thirtieth of a core that it shares with any busy one of normal priority. Seen with Flower
# 1.41's simulation engine (two cores, six busy processes): clients that answer in 15 s alone had used 3 s of CPU
# after three minutes, and nothing says why. RAY_worker_niceness=0 in the environment before ray.init mends it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check ray==2.55.1
cat > "$work/nice.py" <<'PY'
import os, ray

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)


@ray.remote
def niceness():
    return os.nice(0)


print(ray.__version__, "driver", os.nice(0), "task", ray.get(niceness.remote()))
PY
plain=$("$work/env/bin/python" "$work/nice.py" 2>/dev/null)
told=$(RAY_worker_niceness=0 "$work/env/bin/python" "$work/nice.py" 2>/dev/null)
echo "$plain"
echo "RAY_worker_niceness=0: $told"
[ "$plain" = "2.55.1 driver 0 task 15" ] && [ "$told" = "2.55.1 driver 0 task 0" ]
