"""Engines that reproduce many clients. Entry point: :func:`headwater.simulation.simulate.simulate`."""
