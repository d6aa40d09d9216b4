"""One client path for every engine: request in, reply out. Entry: :func:`.execute.execute`."""
