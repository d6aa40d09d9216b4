"""The client's side. Entry point: :func:`headwater.client.execute.execute`."""
