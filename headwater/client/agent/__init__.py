"""The device's agent: its connection, its owner's rules, its worker process. Entry: :mod:`.agent`."""
