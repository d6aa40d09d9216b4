"""Headwater: fine-tune one foundation model from many data owners without moving their data.

The names of ``__all__`` are what other programs may count on (docs/reference/python.md); everything else may
change. Each is imported when it is first used: ``import headwater`` loads neither torch nor anything else.
"""

__version__ = "0.1.0"

_HOMES = {
    "AdapterState": "headwater.state",
    "Aggregator": "headwater.merging.aggregator",
    "Codec": "headwater.compression.codec",
    "CohortTrainer": "headwater.training.cohort",
    "Federation": "headwater.config.federation",
    "HeadwaterError": "headwater.errors",
    "LoadedFederation": "headwater.config.load",
    "Predictor": "headwater.adapters.predict",
    "Run": "headwater.simulation.run",
    "StateSpec": "headwater.state",
    "hf": "headwater",
    "load": "headwater.simulation.load",
    "local_training": "headwater.hf.function",
    "merge": "headwater.training.merging.call",
    "simulate": "headwater.simulation.run",
    "sweep": "headwater.simulation.sweeps.call",
}
"""The module of each public name. ``__init__.pyi`` says the same to type checkers."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """The public name, imported now."""
    from importlib import import_module  # it takes milliseconds that `import headwater` need not

    if name not in _HOMES:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _HOMES[name]
    found: object = (
        import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
