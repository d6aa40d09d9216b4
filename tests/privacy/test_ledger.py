"""The ledger: format, torn lines, and that what cannot be read lets nothing follow."""

from __future__ import annotations

import pytest

from headwater.errors import StorageError
from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.mechanism import Participation
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree
from headwater.privacy.events import (
    Everyone,
    FixedSample,
    PoissonSample,
    PositionReleased,
    SequenceReleased,
    SumReleased,
    from_json,
    to_json,
)
from headwater.privacy.ledger import Ledger

EVENTS = [
    SumReleased(1, "a1", 0.5, 1.25, PoissonSample(0.05)),
    SumReleased(2, "b2", 0.25, 1.25, FixedSample(10, 200)),
    SumReleased(2, "c3", 0.25, 1.25, Everyone(), reproducible=True),
    SequenceReleased(1, "d5", 0.5, 1.25, BufferedToeplitz((0.9,), (0.25,)), Participation(100, 10, 5)),
    PositionReleased(1, "e6", "d5", 1),
    SequenceReleased(3, "f7", 0.5, 1.25, Banded((1.0, 0.5)), Participation(4, 2)),
    SequenceReleased(3, "g8", 0.5, 1.25, Tree(4), Participation(4), reproducible=True),
]
GOLDEN = (
    b'{"event": "sum", "round": 1, "release": "a1", "clip": 0.5, "noise_multiplier": 1.25, '
    b'"sampling": {"kind": "poisson", "rate": 0.05}, "reproducible": false}'
)
SEQUENCE = (
    b'{"event": "sequence", "round": 1, "release": "d5", "clip": 0.5, "noise_multiplier": 1.25, '
    b'"mechanism": {"kind": "blt", "decays": [0.9], "scales": [0.25]}, '
    b'"participation": {"rounds": 100, "separation": 10, "most": 5}, "reproducible": false}'
)
POSITION = b'{"event": "position", "round": 1, "release": "e6", "sequence": "d5", "step": 1}'


def test_the_line_of_an_event_is_as_it_was():
    assert [to_json(EVENTS[at]) for at in (0, 3, 4)] == [GOLDEN, SEQUENCE, POSITION]
    assert [from_json(to_json(event), "here") for event in EVENTS] == EVENTS


def test_what_was_appended_is_there_for_the_next_process(tmp_path):
    path = tmp_path / "privacy.jsonl"
    for event in EVENTS:
        Ledger(path).append(event)
    ledger = Ledger(path)
    assert ledger.events == tuple(EVENTS)
    assert ledger.has("b2")
    assert not ledger.has("d4")


def test_a_torn_last_line_was_never_released(tmp_path):
    path = tmp_path / "privacy.jsonl"
    Ledger(path).append(EVENTS[0])
    with path.open("ab") as file:
        file.write(GOLDEN[:30])
    ledger = Ledger(path)
    assert ledger.events == (EVENTS[0],)
    ledger.append(EVENTS[1])
    assert Ledger(path).events == tuple(EVENTS[:2])


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"event": "sum"}',
        GOLDEN.replace(b'"sum"', b'"later"'),
        GOLDEN.replace(b"poisson", b"lucky"),
        GOLDEN.replace(b"0.05", b"0"),
        GOLDEN.replace(b"1.25", b"-1"),
        GOLDEN.replace(b"1.25", b"NaN"),
        GOLDEN.replace(b'"round": 1', b'"round": 0'),
        SEQUENCE.replace(b"blt", b"butterfly"),
        SEQUENCE.replace(b"0.9", b"1.9"),
        SEQUENCE.replace(b'"separation": 10', b'"separation": 0'),
        SEQUENCE.replace(b'"participation"', b'"partition"'),
        POSITION.replace(b'"step": 1', b'"step": 0'),
        POSITION.replace(b'"d5"', b'""'),
    ],
)
def test_a_line_that_cannot_be_priced_stops_the_run(tmp_path, line):
    path = tmp_path / "privacy.jsonl"
    path.write_bytes(GOLDEN + b"\n" + line + b"\n" + GOLDEN + b"\n")
    with pytest.raises(StorageError, match="line 2"):
        Ledger(path)
