"""Measurements, each beside a peer in the same run. `tools/bench` runs them."""
