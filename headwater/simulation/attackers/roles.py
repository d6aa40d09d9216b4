"""Who of a simulation's clients attacks, and how: :func:`roles`."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.config.federation import Federation
from headwater.errors import ConfigError
from headwater.seeds.keys import Key


def roles(federation: Federation, clients: Sequence[str], key: Key) -> dict[str, int]:
    """By client that attacks, the number of its entry in ``simulation.attackers``, from 0.

    Args:
        federation: the file.
        clients: all of them, sorted.
        key: the federation's root key.

    Raises:
        ConfigError: a name that is no client's or attacks twice, or a fraction of nobody.
    """
    found: dict[str, int] = {}
    entries = federation.simulation.attackers
    for index, attacker in enumerate(entries):
        for name in attacker.clients:
            if name not in clients or name in found:
                raise ConfigError(
                    f"simulation.attackers {index + 1}, client {name!r}",
                    expected="a client of this federation that attacks once",
                    got="one that attacks already" if name in found else "another name",
                )
            found[name] = index
    for index, attacker in enumerate(entries):
        if attacker.fraction is None:
            continue
        free = [name for name in clients if name not in found and name not in federation.strategy.always]
        count = round(attacker.fraction * len(clients))
        if not 0 < count <= len(free):
            raise ConfigError(
                f"simulation.attackers {index + 1}, fraction {attacker.fraction:g}",
                expected=f"1 to {len(free)} clients",
                got=f"{count} of {len(clients)}",
            )
        drawn = key.child("attackers", index).numpy().choice(len(free), size=count, replace=False)
        found |= {free[i]: index for i in sorted(drawn.tolist())}
    return found
