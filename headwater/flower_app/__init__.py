"""A federation file as a Flower app, which ``flwr run`` runs on anybody's SuperLink and SuperNodes.

What ``headwater flower-app`` writes (:mod:`.write`) imports :func:`server_app` and :func:`client_app`.
"""

from headwater.flower_app.client import client_app
from headwater.flower_app.server import server_app

__all__ = ["client_app", "server_app"]
