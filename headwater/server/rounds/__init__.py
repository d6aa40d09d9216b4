"""The rounds of a run. Entry: :class:`.federation_server.FederationServer`."""
