"""What this device has and what a training costs on it."""
