"""Text as a stream of samples: a window of consecutive characters, and as its label the character that follows.

There are 30 symbols: a to z, a space, a comma, a full stop, and one for everything else. Capital letters become small
ones, and white space one space. What has no symbol of its own, however long, and the end of a paragraph (an empty
line) become the last symbol. Hinton (2022, section 5) predicts the next character from a window of ten, too.

An image has the shape (window, 30): a row for each character, oldest first, 255 at its symbol and 0 elsewhere. Sample
t + 1 has the window of sample t, moved by one character. The first nine tenths of a text are for training and the
rest is the test split, both in the order of the text.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np

from ffstream.data.dataset import Dataset, Part, Split, UInt8Array
from ffstream.errors import DataError

ALPHABET = "abcdefghijklmnopqrstuvwxyz ,."
SYMBOLS = len(ALPHABET) + 1
CORPUS = "pydoc-topics"
"""The name of the text that every Python has: that of `pydoc_data.topics`, which `help()` shows."""

MAX_CHARACTERS = 5_000_000
MAX_BYTES = 2 << 30  # of all images: each has 30 bytes for each character of a window

_OTHER = "-"
_CODES = {ord(symbol): code for code, symbol in enumerate(ALPHABET + _OTHER)}


def load_text(name_or_path: str, window: int) -> Dataset:
    """Return the windows of a text file (UTF-8), or of the corpus named CORPUS.

    Raises DataError for a file that cannot be read, is not text, is too long or too short for that window.
    """
    if name_or_path == CORPUS:
        return text_dataset(CORPUS, corpus(), window)
    try:
        raw = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 text ({error.reason})"
        hint = f"give a text file, or {CORPUS}, the text of Python's documentation"
        raise DataError(f"{name_or_path}: {reason}", hint=hint) from error
    return text_dataset(Path(name_or_path).name, raw, window)


def text_dataset(name: str, text: str, window: int) -> Dataset:
    """Return the windows of a text. Raises DataError if it is too long, or too short for that window."""
    codes = encode(text)
    if len(codes) > MAX_CHARACTERS:
        hint = "cut it into parts, and replay one after the other"
        raise DataError(f"{name}: {len(codes):,} characters; a text has at most {MAX_CHARACTERS:,}", hint=hint)
    if (size := len(codes) * window * SYMBOLS) > MAX_BYTES:
        reason = f"with a window of {window}, {len(codes):,} characters make {size / 1e9:.1f} GB of images"
        raise DataError(
            f"{name}: {reason}, more than {MAX_BYTES / 1e9:.1f} GB", hint="cut it, or use a smaller window"
        )
    cut = len(codes) * 9 // 10
    if cut <= window:
        raise DataError(f"{name}: {len(codes):,} characters are too few for a window of {window}")
    return Dataset(name, partial(_read, codes, cut, window))


def encode(text: str) -> UInt8Array:
    """Return the symbol (n,) of each character that is left of a text, 0 to 29."""
    paragraphs = filter(None, (_reduced(part) for part in re.split(r"\n\s*\n", text)))
    return np.frombuffer(_OTHER.join(paragraphs).translate(_CODES).encode("latin-1"), np.uint8)


def decode(codes: UInt8Array) -> str:
    """Return the text of symbols."""
    return "".join((ALPHABET + _OTHER)[code] for code in codes)


def corpus() -> str:
    """Return the text of Python's documentation of its language, without paragraphs that came before.

    It depends on the version of Python: compare a checksum.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = dict.fromkeys(_reduced(part) for part in text.split("\n\n"))
    return "\n\n".join(paragraphs)


def _reduced(paragraph: str) -> str:
    known = re.sub(r"[^a-z,.\s]+", _OTHER, paragraph.lower())
    return re.sub(r"\s+", " ", known).strip()


def _read(codes: UInt8Array, cut: int, window: int, part: Part) -> Split:
    # The first windows of the test split reach back into the training text: they hold no label of it.
    own = codes[:cut] if part == "train" else codes[cut - window :]
    rows = np.eye(SYMBOLS, dtype=np.uint8)[own[:-1]] * np.uint8(255)
    windows = np.lib.stride_tricks.sliding_window_view(rows, window, axis=0).transpose(0, 2, 1)
    return Split(np.ascontiguousarray(windows), own[window:].copy())
