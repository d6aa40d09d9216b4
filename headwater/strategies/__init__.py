"""Server maths. Entry points: :class:`Strategy`, :class:`FederatedStrategy`, :func:`rule_for`."""

from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.rules import rule_for
from headwater.strategies.strategy import ServerState, Strategy

__all__ = ["FederatedStrategy", "ServerState", "Strategy", "rule_for"]
