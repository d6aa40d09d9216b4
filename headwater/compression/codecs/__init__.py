"""One codec a file, beside ``compeft`` and ``dense``; :mod:`headwater.compression.table` lists them all."""
