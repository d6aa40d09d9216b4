"""The port of the agents: HTTP, limits of connections, authentication of requests and replies."""
