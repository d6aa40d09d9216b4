"""Updates of seeds and coefficients: keys, directions, the seeds' state and slopes. No torch."""
