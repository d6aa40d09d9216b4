#!/usr/bin/env bash
# dp-accounting 0.6.0: of one event, GaussianDpEvent(5) fifty times under REPLACE_ONE, the RDP accountant says
# epsilon 7.08 and the PLD accountant 15.46, though both are upper bounds and PLD is the tight one. RDP reads the
# multiplier as noise over the sensitivity and ignores the relation; PLD reads it as noise over the norm, as the
# event's docstring has it, and doubles the shift.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check dp-accounting==0.6.0
"$work/env/bin/python" - <<'PY'
import dp_accounting as dp
from dp_accounting import pld, rdp

event, found = dp.SelfComposedDpEvent(dp.GaussianDpEvent(5.0), 50), {}
for relation in (dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE):
    for accountant in (rdp.RdpAccountant, pld.PLDAccountant):
        counted = accountant(neighboring_relation=relation)
        counted.compose(event)
        found[relation.name, accountant.__name__] = counted.get_epsilon(1e-5)
for what, epsilon in found.items():
    print(*what, round(epsilon, 3))
assert found["REPLACE_ONE", "RdpAccountant"] == found["ADD_OR_REMOVE_ONE", "RdpAccountant"]
assert found["REPLACE_ONE", "PLDAccountant"] > 2 * found["REPLACE_ONE", "RdpAccountant"]
PY
