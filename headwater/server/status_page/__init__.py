"""The organiser's status page: a small web application on loopback. Entry: :mod:`.app`."""
