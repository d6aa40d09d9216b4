"""How fast clients' updates come, as the server's end of their links sees it: :class:`UploadSpeeds`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid

from headwater.proto.wire import tells_failure
from headwater.strategies.links import KEPT


@runtime_checkable
class TimesReplies(Protocol):
    """A grid whose replies come over links, and that sees how fast."""

    def bytes_per_s(self, message_id: str) -> int | None:
        """Of a reply that was pulled, said once, or of one that is still coming; None: nobody knows."""


class UploadSpeeds:
    """The last few speeds of each client, in bytes/s, until they are asked for.

    An update counts however short it is, latency included: what a budget makes of the speed of a short one is
    a longer one, which tells more. A failure does not: nobody asks for a longer one.

    Args:
        grid: speeds are of its replies; there are none where it does not time them.
    """

    def __init__(self, grid: Grid) -> None:
        self._bytes_per_s = grid.bytes_per_s if isinstance(grid, TimesReplies) else None
        self._speeds: dict[str, deque[int]] = {}

    def note(self, client: str, message_id: str, reply: bytes = b"") -> None:
        """An update has come, or is not waited for any more: then the part that came counts.

        Args:
            client: whose.
            message_id: of its request.
            reply: what came.
        """
        if self._bytes_per_s is None or tells_failure(reply):
            return
        if (speed := self._bytes_per_s(message_id)) is not None:
            self._speeds.setdefault(client, deque(maxlen=KEPT)).append(speed)

    def take(self) -> Mapping[str, Sequence[int]]:
        """What was noted since this was last asked, by client, the oldest first."""
        speeds, self._speeds = self._speeds, {}
        return {client: tuple(found) for client, found in speeds.items()}
