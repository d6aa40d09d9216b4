"""A federation that is attacked as it trains, to compare what is got with what it promised: :mod:`.audit`."""
