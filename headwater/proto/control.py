"""The organiser's gRPC service: :func:`serve` a daemon's :class:`Organiser`, or be a client of one.

``docs/reference/control-api.md`` describes it, headwater/proto/v1/control.proto is its schema.
"""

from __future__ import annotations

from headwater.proto.control_client import ControlClient
from headwater.proto.control_server import ControlServer, serve

__all__ = ["ControlClient", "ControlServer", "serve"]
