"""The typed federation file. Entry points: :class:`Federation`, :func:`load_federation`."""

from headwater.config.federation import Federation
from headwater.config.load import LoadedFederation, load_federation

__all__ = ["Federation", "LoadedFederation", "load_federation"]
