"""Secret: 32 bytes from the operating system that no log, file or other process gets to see."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NoReturn

SECRET_BYTES = 32


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Secret:
    """A key or a seed. Its ``repr`` shows nothing and it cannot be pickled.

    Args:
        value: 32 bytes. Whoever needs a new one calls :meth:`create`; only a server that was given enough
            shares of one makes it from bytes.
    """

    value: bytes

    @staticmethod
    def create() -> Secret:
        """A new one, from the operating system's entropy."""
        return Secret(secrets.token_bytes(SECRET_BYTES))

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        """Refuse to leave the process."""
        raise TypeError("a secret does not leave its process")
