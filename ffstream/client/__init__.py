"""Clients of a daemon. They import no torch: a producer may run anywhere.

>>> from ffstream.client import Producer, Predictor, Control
"""

from ffstream.client.control import Control
from ffstream.client.predictor import Predictor
from ffstream.client.producer import Producer

__all__ = ["Control", "Predictor", "Producer"]
