"""Sweeps: a grid of federations over one base model. Entry points: ``plan.load_sweep``, ``run.run_sweep``."""
