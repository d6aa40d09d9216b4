"""A version begun, and updates folded into it."""

from __future__ import annotations

from headwater.protocol import coordinator as c

CLIENTS = ("ann", "ben", "cleo", "dora")


def begin(machine, version=1, clients=CLIENTS, now_s=0.0, **more):
    return machine.receive(c.Begin(version, clients, now_s, **more))


def fold(machine, name, version=1):
    assert machine.receive(c.Arrived(name, version)) == [c.Fold(name, version)]
    return machine.receive(c.Folded(name, version))
