"""Rules against clients that are broken or lie, beside the median; and :mod:`.screen`, which names them."""
