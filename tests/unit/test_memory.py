"""What nobody uses goes back to the system, even if it lies between what stays."""

import os
import platform

import pytest

from ffstream.daemon import return_free_memory
from tools.load.figures import look


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_between_what_stays_is_returned() -> None:
    blocks = [bytes([at % 256]) * 3000 for at in range(30_000)]
    stays = blocks[::20]
    full = look(os.getpid()).rss_mb
    del blocks
    return_free_memory()
    assert look(os.getpid()).rss_mb < full - 40
    assert len(stays) == 1500
