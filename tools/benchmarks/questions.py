"""The reference article's open questions: each experiment at a small size, with few samples and one seed.

An experiment shows that it runs and what it prints; figures come from the commands in tools/README.md.
"""

from collections.abc import Callable, Mapping, Sequence

from ffstream.data import Dataset, Split, load
from ffstream.data.dataset import Part
from tools.benchmarks import dreams, hardware, recurrent, serial
from tools.benchmarks.report import Report

_TRAIN, _TEST = 2000, 1000

QUESTIONS: Mapping[str, Callable[[Report, Dataset], None]] = {
    "hardware": hardware.question,
    "dreams": dreams.question,
    "serial": lambda report, digits: serial.question(report),
    "recurrent": recurrent.question,
}


def run(report: Report, names: Sequence[str] = tuple(QUESTIONS)) -> None:
    """Answers the questions of these names."""
    digits = few_digits()
    for name in names:
        QUESTIONS[name](report, digits)


def few_digits() -> Dataset:
    """The first of the embedded digits, to learn and to test."""
    digits = load("embedded")
    parts: dict[Part, Split] = {"train": _first(digits.train, _TRAIN), "test": _first(digits.test, _TEST)}
    return Dataset("few_digits", lambda part: parts[part])


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])
