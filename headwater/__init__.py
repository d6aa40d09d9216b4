"""Headwater: fine-tune one foundation model from many data owners without moving their data."""

__version__ = "0.1.0"
