"""The measurements, each beside its peer in the same run. `tools/bench` is the way in."""
