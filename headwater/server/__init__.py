"""The server's side. Entry point: :class:`headwater.server.federation.FederationServer`."""
