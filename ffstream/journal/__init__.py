"""The durable log: what was acked and not yet learned, and who sent what."""
