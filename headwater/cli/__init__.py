"""The command line: one file per verb. Entry point: :func:`headwater.cli.main.main`."""
