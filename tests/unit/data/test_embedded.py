import hashlib
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np

import ffstream
from ffstream.data.catalog import load
from ffstream.data.dataset import Split
from ffstream.data.embedded import load_embedded
from ffstream.data.idx import write_idx

REPOSITORY = Path(ffstream.__file__).parent.parent


def test_there_are_10000_and_2000_distinct_digits_of_all_classes() -> None:
    dataset = load_embedded()
    assert dataset.name == "embedded"
    for split, n in (dataset.train, 10_000), (dataset.test, 2_000):
        assert split.images.shape == (n, 28, 28)
        assert len(np.unique(split.images.reshape(n, -1), axis=0)) == n
        # A fair draw gives each class about a tenth.
        counts = np.bincount(split.labels, minlength=10)
        assert len(counts) == 10
        assert counts.min() > 0.08 * n
        assert counts.max() < 0.12 * n


def test_the_digits_are_those_that_published_results_refer_to() -> None:
    dataset = load_embedded()
    digest = hashlib.sha256()
    for split in dataset.train, dataset.test:
        digest.update(split.images.tobytes() + split.labels.tobytes())
    assert digest.hexdigest() == "f57e8e9b734a857a21d375c8a1322bf76fabba4b9cba96527873248823ec8b56"


def test_the_embedded_files_stay_small() -> None:
    folder = resources.files("ffstream.data") / "embedded"
    with resources.as_file(folder) as path:
        assert sum(file.stat().st_size for file in path.iterdir()) <= 2_200_000


def test_the_tool_draws_distinct_samples_with_their_labels_and_is_reproducible(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for prefix, n in ("train", 12_000), ("t10k", 2_500):
        # Each image holds its own number, and the label follows from it.
        number = np.arange(n, dtype="<u2")
        split = Split(number.view(np.uint8).reshape(n, 1, 2), (number % 10).astype(np.uint8))
        write_idx(source / f"{prefix}-images-idx3-ubyte", split.images)
        write_idx(source / f"{prefix}-labels-idx1-ubyte", split.labels)

    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        subprocess.run(
            [sys.executable, REPOSITORY / "tools" / "embed", source, "--out", out],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            check=True,
            timeout=60,
        )

    files = [{path.name: path.read_bytes() for path in out.iterdir()} for out in outs]
    assert len(files[0]) == 4
    assert files[0] == files[1]
    drawn = load(str(outs[0]))
    for split, n in (drawn.train, 10_000), (drawn.test, 2_000):
        number = split.images.reshape(n, 2).copy().view("<u2")[:, 0]
        assert len(np.unique(number)) == n
        assert np.array_equal(number % 10, split.labels)
        assert not np.array_equal(number, np.sort(number))


def test_the_tool_names_a_missing_file(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "embed", tmp_path, "--out", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert "no data set there; it is empty" in run.stderr
