"""Random numbers that a replay draws again."""

import zlib

import torch


def generator_for(purpose: str, seed: int, position: int) -> torch.Generator:
    """Its own generator for each purpose, seed and position in the stream; torch looks at 32 bits of a seed."""
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed} {position}".encode()))
