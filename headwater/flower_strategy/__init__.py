"""Headwater's rules and codecs inside a Flower app of your own, on plain ArrayRecords.

:class:`HeadwaterStrategy` on the server merges; :func:`headwater_mod` on clients compresses what they send.
"""

from headwater.flower_strategy.mod import headwater_mod
from headwater.flower_strategy.strategy import HeadwaterStrategy

__all__ = ["HeadwaterStrategy", "headwater_mod"]
