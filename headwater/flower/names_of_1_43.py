"""What Flower 1.43 renames, under the names of 1.41 and 1.42: :class:`NamesOf143`.

Read in and run with flwr-nightly 1.43.0.dev20261026. Its Fleet handlers ask a link state for
``get_messages``, which was ``get_message_ins``, and ``cancel_messages``, which was ``delete_messages``.

Not here, because nothing of ours calls it: ``Grid.pull_messages`` names its first parameter
``reply_to_message_ids``, which is given by position; ``acknowledge_messages`` is
:meth:`.HeadwaterLinkState.confirm`, which a call of ours reaches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection

from flwr.app import Message


class NamesOf143:
    """A mixin of a link state, before Flower's class: 1.43's handlers reach it by their names."""

    @abstractmethod
    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Messages for a node: 1.42's name."""

    @abstractmethod
    def drop(self, message_id: str) -> None:
        """Forget a message."""

    def get_messages(
        self,
        *,
        dst_node_id: int,
        run_id: int | None = None,
        reply_to_message_ids: Collection[str] | None = None,
        limit: int | None = None,
    ) -> list[Message]:
        """Messages for a node: 1.43's name. Replies are taken another way (:meth:`.LinkGrid.pull_messages`).

        Raises:
            NotImplementedError: replies are asked for, which no Fleet handler does.
        """
        if reply_to_message_ids is not None:
            raise NotImplementedError("replies are not handed out here: LinkGrid takes them")
        return self.get_message_ins(dst_node_id, limit, run_id=run_id)

    def cancel_messages(
        self, *, message_ids: Collection[str] | None = None, run_id: int | None = None
    ) -> None:
        """Forget messages whose objects are gone: 1.43's name."""
        for message_id in message_ids or ():
            self.drop(message_id)
