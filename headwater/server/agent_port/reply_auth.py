"""ReplyVerifier: a reply is believed only with the signature of the client whose task it answers."""

from __future__ import annotations

from collections.abc import Callable

from headwater.errors import DecodeError, HeadwaterError
from headwater.proto.wire import decode_signed
from headwater.security.signing import verify_reply
from headwater.server.monitoring.refusals import NOT_SIGNED
from headwater.server.workspace.registry import ClientRegistry


class ReplyVerifier:
    """Opens what arrives at an enrolled client's address.

    Args:
        registry: who is enrolled with which key.
        refused: is told why, and whose, when something is not believed.
    """

    def __init__(self, registry: ClientRegistry, refused: Callable[[str, str], None]) -> None:
        self._registry, self._refused = registry, refused

    def __call__(self, client: str, data: bytes) -> bytes:
        """The signed reply's content.

        What a revoked client sent while it was enrolled may still be opened: no more comes in.

        Raises:
            DecodeError: not a signed reply, or of nobody.
            UpdateRejected: the signature is not this client's.
        """
        try:
            record = self._registry.get(client)
            if record is None:
                raise DecodeError(f"client {client}", expected="an enrolled name", got="one that is not")
            reply, signature = decode_signed(data, max_bytes=len(data))
            verify_reply(record.public, reply, signature)
        except HeadwaterError:
            self._refused(NOT_SIGNED, client)
            raise
        return reply
