"""Output in the terminal's encoding, which may not have every character that is printed."""

import codecs
import io
import sys


def tolerate_encoding() -> None:
    """Prints characters that the encoding of stdout or stderr does not have as `?`, or escaped, without an error.

    The encoding comes from the locale or from PYTHONIOENCODING. rich draws tables in ASCII if it is not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # closed, or replaced
            continue
        is_utf8 = codecs.lookup(stream.encoding).name == "utf-8"
        # In the C locale Python uses surrogateescape: it can print arguments, but no other characters beyond ASCII.
        if stream.errors == "strict" or (stream.errors == "surrogateescape" and not is_utf8):
            stream.reconfigure(errors="replace")
