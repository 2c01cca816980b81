"""The subset of MNIST in this package: 10,000 training and 2,000 test digits, for demos and tests without a network.

`tools/embed` wrote it: a random sample of the two MNIST splits.
"""

from importlib import resources

from ffstream.data.dataset import Dataset, Part, Split
from ffstream.data.places import choose


def load_embedded() -> Dataset:
    """Return the embedded digits: train (10000, 28, 28), test (2000, 28, 28), labels 0 to 9."""
    return Dataset("embedded", _read)


def _read(part: Part) -> Split:
    with resources.as_file(resources.files("ffstream.data") / "embedded") as folder:
        return choose(folder).read(part)
