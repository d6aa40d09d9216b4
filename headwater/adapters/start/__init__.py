"""``adapter.start``: an adapter that a federation goes on with. :mod:`.source` opens, :mod:`.fit` fits it."""
