"""The client's side. Entry point: :func:`headwater.client.execution.execute.execute`."""
