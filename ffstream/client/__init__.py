"""Clients of a daemon. They do not import torch, so they run anywhere.

>>> from ffstream.client import Producer, Predictor, Control, CurveKeys
"""

from ffstream.client.control import Control
from ffstream.client.keys import CurveKeys
from ffstream.client.predictor import Predictor
from ffstream.client.producer import Producer

__all__ = ["Control", "CurveKeys", "Predictor", "Producer"]
