"""Tests of adapters that a federation starts from."""
