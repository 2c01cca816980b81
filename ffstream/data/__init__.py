"""Data sets for producers and evaluation: IDX files, a catalog with a cache, embedded digits, stream orders."""

from ffstream.data.catalog import load
from ffstream.data.dataset import Dataset, Split, UInt8Array, load_folder
from ffstream.data.download import Progress
from ffstream.data.embedded import load_embedded
from ffstream.data.idx import read_idx, write_idx
from ffstream.data.streams import DRIFTS, Drift, Order, batches, label_permutation_at, stream

__all__ = [
    "DRIFTS",
    "Dataset",
    "Drift",
    "Order",
    "Progress",
    "Split",
    "UInt8Array",
    "batches",
    "label_permutation_at",
    "load",
    "load_embedded",
    "load_folder",
    "read_idx",
    "stream",
    "write_idx",
]
