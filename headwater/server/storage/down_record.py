"""DownRecord: what the server knows of its clients' global states, as its checkpoint keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headwater.protocol.messages import Payload

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DownRecord:
    """What clients hold, and what makes the present state of it.

    Args:
        path: names of global states, each made from the one before; the last is the present one.
        links: what was added to each of them but the last.
        held: by client, the one that it holds.
        full: clients that said that they lack what they were believed to hold, and did nothing since.
    """

    path: tuple[str, ...] = ()
    links: tuple[Payload, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    full: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Everything but the links' bodies, which it has the hashes of, for JSON."""
        place = {name: i for i, name in enumerate(self.path)}
        return {
            "path": list(self.path),
            "links": [[one.codec, hashlib.sha256(one.body).hexdigest()] for one in self.links],
            "held": {client: place[name] for client, name in sorted(self.held.items()) if name in place},
            "full": sorted(self.full),
        }

    def arrays(self) -> dict[str, Array]:
        """The links' bodies by name: uint8."""
        return {f"down/{i}": np.frombuffer(one.body, np.uint8) for i, one in enumerate(self.links)}

    @staticmethod
    def read(described: Mapping[str, Any], array: Callable[[str], Array]) -> DownRecord:
        """What was written.

        Raises:
            ValueError, KeyError, TypeError, IndexError: anything else.
        """
        links = []
        for i, (codec, digest) in enumerate(described["links"]):
            body = array(f"down/{i}").tobytes()
            if hashlib.sha256(body).hexdigest() != digest:
                raise ValueError(f"link {i} of the way down does not match its hash")
            links.append(Payload(codec, body))
        path = tuple(described["path"])
        held = {client: path[i] for client, i in described["held"].items()}
        return DownRecord(path, tuple(links), held, tuple(described["full"]))
