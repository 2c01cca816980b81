"""Wrong labels, the negative data of supervised FF.

Random ones come from the seed and the microbatch's sequence number, so a replay draws the same.
"""

import zlib

import torch
from torch import Tensor


def generator_for(purpose: str, seed: int, position: int) -> torch.Generator:
    """Its own generator for each purpose, seed and position in the stream; torch looks at 32 bits of a seed."""
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed} {position}".encode()))


def random_wrong_labels(labels_B: Tensor, labels: int, seed: int, step: int) -> Tensor:
    """A label other than the sample's own, uniformly."""
    generator = generator_for("negatives", seed, step)
    offset_B = torch.randint(1, labels, labels_B.shape, generator=generator)
    return (labels_B + offset_B.to(labels_B.device)).remainder_(labels)


def hardest_wrong_labels(goodness_BL: Tensor, labels_B: Tensor) -> Tensor:
    """The wrong label with the highest goodness: the one most easily mistaken for the right one."""
    return goodness_BL.scatter(1, labels_B[:, None], -torch.inf).argmax(1)
