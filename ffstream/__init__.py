"""ffstream: a daemon that learns a labelled stream with the Forward-Forward algorithm and never stops."""

__version__ = "0.1.0"
