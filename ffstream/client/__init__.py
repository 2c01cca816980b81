"""Clients of a daemon. They do not import torch, so they run anywhere.

>>> from ffstream.client import Producer, Predictor, Control, CurveKeys, UNLABELLED
"""

from ffstream.client.control import Control
from ffstream.client.keys import CurveKeys
from ffstream.client.predictor import Predictor
from ffstream.client.producer import Producer
from ffstream.util.labels import UNLABELLED

__all__ = ["UNLABELLED", "Control", "CurveKeys", "Predictor", "Producer"]
