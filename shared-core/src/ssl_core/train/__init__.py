"""Training: one loop (`fit`), its optimiser, schedule, checkpoints and log."""
