"""Random numbers that depend on the seed and the position in the stream only, so recovery draws the same again."""

import zlib

import torch


def generator_for(purpose: str, seed: int, position: int) -> torch.Generator:
    """A generator for one purpose, seed and position in the stream. torch uses 32 bits of a seed, hence the
    CRC-32."""
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed} {position}".encode()))
