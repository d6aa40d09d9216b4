"""The server's side. Entry point: :class:`headwater.server.rounds.federation_server.FederationServer`."""
