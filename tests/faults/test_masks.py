"""The daemon is killed with SIGKILL in each phase of a masked sum: it is summed anew, to the same bits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.fleet import Trial, eventually, vector

pytestmark = pytest.mark.faults
MASKS = "[privacy]\nmasks = true\nmask_dropouts = 0.34\n"
PHASES = {
    "key agreement": lambda row: row["attempt"] and not row["vectors"],
    "masking": lambda row: row["vectors"] and not row["survivors"],
    "unmasking": lambda row: bool(row["survivors"]),
}


@pytest.mark.parametrize("phase", PHASES)
def test_in_a_phase_of_a_masked_sum(fleet, note, outcome, phase):
    trial = Trial(fleet, vector(8, size=20_000, more=MASKS))

    def here() -> bool:
        try:
            row: dict[str, Any] = json.loads((trial.folder / "state" / "masked_round.json").read_text())
        except (OSError, ValueError):
            return False
        return row["round"] == trial.saved + 1 > 1 and bool(PHASES[phase](row))

    hit, kill = False, 0
    while not hit and kill < 8:
        kill += 1
        eventually(here, 60, phase, 0.005)
        fleet.daemon.kill()
        hit = here()
        fleet.restart_daemon()
        begun = trial.round
        if not hit:
            eventually(lambda begun=begun: trial.round > begun, 60, "the next round")
    assert hit
    note(f"kill -9 of the daemon in a masked sum: {phase}", f"round {trial.saved + 1}, kill {kill}")
    outcome(trial.ends_right())
