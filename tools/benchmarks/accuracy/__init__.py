"""Accuracy over a stream, beside a backprop network of the same shape that gets the same stream.

`stream.py` forms the microbatches that a daemon would form; `learners.py` and `backprop.py` learn them. `run.py` is
one resumable run of one learner. `figures.py` runs each seed, `rows.py` and `plot.py` make rows and a picture.
`tuning.py` chooses the settings of the backprop network, which `peer_settings.toml` keeps. `through_daemon.py` proves
that a daemon gets the same.
"""
