"""Data sets for producers and evaluation: a catalog with a cache, the formats that are read, stream orders."""

from ffstream.data.catalog import load
from ffstream.data.dataset import Dataset, Split, SplitName, UInt8Array
from ffstream.data.embedded import load_embedded
from ffstream.data.files import Progress
from ffstream.data.idx import read_idx, write_idx
from ffstream.data.streams import DRIFTS, Drift, LabelArray, Order, batches, label_permutation_at, stream
from ffstream.data.text import load_text

__all__ = [
    "DRIFTS",
    "Dataset",
    "Drift",
    "LabelArray",
    "Order",
    "Progress",
    "Split",
    "SplitName",
    "UInt8Array",
    "batches",
    "label_permutation_at",
    "load",
    "load_embedded",
    "load_text",
    "read_idx",
    "stream",
    "write_idx",
]
