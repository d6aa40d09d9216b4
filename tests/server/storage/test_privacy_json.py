"""What a checkpoint says of noise: as it was, read back, and refused where it is nothing."""

from __future__ import annotations

import copy
import json

import pytest

from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.mechanism import Participation
from headwater.server.storage.privacy_json import privacy_from_json, privacy_to_json
from headwater.strategies.strategy import NoiseSequence, PrivacyState

SEQUENCE = NoiseSequence(3, BufferedToeplitz((0.9,), (0.25,)), Participation(100, 10))
STATE = PrivacyState(0.5, 1.25, SEQUENCE, {"ann": (4, 2), "ben": (3, 1)})
GOLDEN = {
    "clip": "0x1.0000000000000p-1",
    "multiplier": "0x1.4000000000000p+0",
    "sequence": {
        "first": 3,
        "mechanism": {"kind": "blt", "decays": [0.9], "scales": [0.25]},
        "participation": {"rounds": 100, "separation": 10, "most": None},
    },
    "asked": {"ann": [4, 2], "ben": [3, 1]},
}


def test_it_is_as_it_was_and_reads_back():
    written = json.loads(json.dumps(privacy_to_json(STATE)))
    assert written == GOLDEN
    assert privacy_from_json(written) == STATE


def test_of_independent_noise_it_says_what_it_always_said():
    assert privacy_to_json(PrivacyState(0.5, 1.25)) == {k: GOLDEN[k] for k in ("clip", "multiplier")}
    assert privacy_from_json({k: GOLDEN[k] for k in ("clip", "multiplier")}) == PrivacyState(0.5, 1.25)
    assert privacy_from_json(None) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("clip",), "0x0p+0"),
        (("multiplier",), "nan"),
        (("sequence", "mechanism", "kind"), "butterfly"),
        (("sequence", "mechanism", "decays"), [1.5]),
        (("sequence", "participation", "rounds"), 0),
        (("asked", "ann"), [4]),
        (("asked",), ["ann"]),
    ],
)
def test_what_is_no_state_is_refused(place, value):
    content = copy.deepcopy(GOLDEN)
    table = content
    for name in place[:-1]:
        table = table[name]
    table[place[-1]] = value
    with pytest.raises((ValueError, LookupError, TypeError)):
        privacy_from_json(content)
