"""A round begun, and updates folded into it."""

from __future__ import annotations

from headwater.protocol import coordinator as c

CLIENTS = ("ann", "ben", "cleo")


def begin(machine, round=1, clients=CLIENTS, now_s=0.0):
    return machine.receive(c.Begin(round, clients, now_s))


def fold(machine, name, round=1):
    assert machine.receive(c.Arrived(name, round)) == [c.Fold(name, round)]
    return machine.receive(c.Folded(name, round))
