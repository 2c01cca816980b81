"""The learning side: a training run, its checkpoints, recovery and rollback."""
