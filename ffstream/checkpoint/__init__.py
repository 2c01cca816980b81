"""The durable state: checkpoints on disk, written whole or not at all."""
