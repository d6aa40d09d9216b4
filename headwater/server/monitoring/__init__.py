"""Counters, events and rounds as the status page, ``watch`` and Prometheus show them."""
