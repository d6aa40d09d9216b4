"""What training processes import, for the one that they are forked from (multiprocessing's forkserver)."""

from __future__ import annotations

from headwater.process_memory import importing

with importing(for_good=True):
    import headwater.adapters.base
    import headwater.adapters.model
    import headwater.adapters.trial
    import headwater.simulation.workers  # noqa: F401 - imported for their effect, all four
