"""Several clients' adapters in one pass, a file each: :mod:`.layer` says what a layer is."""
