"""The typed federation file. Entry points: :class:`Federation`, :func:`load_federation`.

Both are imported when they are first used: a merge of folders reads its rule's settings, and no federation.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.config.federation import Federation
    from headwater.config.load import LoadedFederation, load_federation

__all__ = ["Federation", "LoadedFederation", "load_federation"]
_HOMES = {"Federation": "federation", "LoadedFederation": "load", "load_federation": "load"}


def __getattr__(name: str) -> object:
    """The name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headwater.config' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"headwater.config.{_HOMES[name]}"), name)
