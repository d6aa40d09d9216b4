"""OneRunGrid: the base of our grids."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class OneRunGrid(Grid):
    """What Flower's interface asks of a grid and a server of ours uses none of: there is one run."""

    def set_run(self, run: object) -> None:
        """Nothing."""

    @property
    def run(self) -> None:  # type: ignore[override]  # Flower's Run is internal and has no meaning here
        """No Flower run."""
        return

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Deprecated by Flower; kept because the interface demands it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
