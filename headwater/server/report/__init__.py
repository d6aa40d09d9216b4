"""``report.html`` of a run folder. Entry: :mod:`.page`."""
