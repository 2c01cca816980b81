"""The learning side: a training run, and what operates on it."""
