"""Output in the terminal's encoding, which may lack what we print."""

import codecs
import io
import sys


def tolerate_encoding() -> None:
    """What the encoding of stdout or stderr lacks is printed as `?`, or escaped, and is no error.

    An encoding comes from the locale or from PYTHONIOENCODING. rich draws tables in ASCII where it is not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # closed, or somebody else's
            continue
        is_utf8 = codecs.lookup(stream.encoding).name == "utf-8"
        # What Python sets in the C locale writes back the bytes of arguments, and nothing else that is not ASCII.
        if stream.errors == "strict" or (stream.errors == "surrogateescape" and not is_utf8):
            stream.reconfigure(errors="replace")
