"""Whether output has colours."""

import os
from typing import IO, Any


def is_coloured(stream: IO[Any]) -> bool:
    """Only a terminal gets colours, and none if NO_COLOR is set (no-color.org). FORCE_COLOR changes nothing: it would
    write escape sequences into files and pipes."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
