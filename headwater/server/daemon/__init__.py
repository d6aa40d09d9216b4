"""The server process: ports, the queue of runs, the control service. Entry: :mod:`.daemon`."""
