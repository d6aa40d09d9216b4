"""The organiser changes how much a codec keeps: from the next round on, whatever crashes in between."""

from __future__ import annotations

import pytest

from headwater.server.clients.run_control import Interrupted
from headwater.server.events import ClientDone
from tests.server.storage.test_durability import Site

DENSITY = 0.4


def change(site):
    up = site.changes.codec.up.model_copy(update={"density": DENSITY})
    site.changes = site.changes.model_copy(update={"codec": site.changes.codec.model_copy(update={"up": up})})


def sizes(site):
    return [sum(row["bytes_up"] for row in record["clients"].values()) for record in site.records[1:]]


def at(site, moment):
    """What changes the density when the ``moment``-th update of the run is in."""
    done = []

    def tell(event):
        if isinstance(event, ClientDone):
            done.append(event)
            if len(done) == moment:
                change(site)

    return tell


@pytest.mark.parametrize("crash_at", [6, 8])
def test_from_the_next_round_on_whatever_crashes(tmp_path, crash_at):
    calm, crash = Site(tmp_path, name="calm"), Site(tmp_path, name="crash")
    calm.go(tell=at(calm, 6))  # in round 2, of four clients
    with pytest.raises(Interrupted):
        crash.go(crash_at=crash_at, kinds=ClientDone, tell=at(crash, 6))
    assert crash.changes.codec.up.density == DENSITY
    crash.go()
    assert crash.states == calm.states
    one, two, three = sizes(calm)
    assert abs(one - two) < 50
    assert three > two + 200
