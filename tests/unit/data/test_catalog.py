import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest

from ffstream.data.catalog import cache_folder, load
from ffstream.data.dataset import Dataset
from ffstream.data.download import RemoteFile
from ffstream.data.sources import SOURCES, Source
from ffstream.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FFSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FFSTREAM_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def sources(tiny_folder: Path, mirror: Any) -> dict[str, Source]:
    """A catalog whose `mnist` is the tiny dataset, served by the mirror under /own/."""
    files = []
    for path in sorted(tiny_folder.iterdir()):
        content = path.read_bytes()
        mirror.serve(f"/own/{path.name}", content)
        files.append(RemoteFile(path.name, (f"sha256:{hashlib.sha256(content).hexdigest()}",)))
    return {"mnist": Source((f"{mirror.url}/own/",), tuple(files))}


def same(read: Dataset, expected: Dataset) -> bool:
    return np.array_equal(read.train.images, expected.train.images) and np.array_equal(
        read.test.labels, expected.test.labels
    )


def test_a_named_data_set_is_downloaded_once_and_then_read_from_the_cache(
    sources: dict[str, Source], mirror: Any, cache: Path, tiny: Dataset
) -> None:
    reported = set()
    first = load("mnist", None, lambda file, done, total: reported.add(file), sources=sources)
    second = load("mnist", sources=sources)
    assert first.name == "mnist"
    assert same(first, tiny)
    assert same(second, tiny)
    assert len(mirror.requests) == 4
    names = {remote.name for remote in sources["mnist"].files}
    assert reported == {"reading mnist", *(f"downloading {name}" for name in names)}
    assert {path.name for path in (cache / "mnist").iterdir()} == names


def test_only_a_file_that_is_damaged_in_the_cache_is_downloaded_again(
    sources: dict[str, Source], mirror: Any, cache: Path, tiny: Dataset
) -> None:
    load("mnist", sources=sources)
    mirror.requests.clear()
    (cache / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(b"rot")
    assert same(load("mnist", sources=sources), tiny)
    assert mirror.requests == ["/own/t10k-images-idx3-ubyte.gz"]


def test_ffstream_mirror_replaces_the_mirrors(
    sources: dict[str, Source],
    mirror: Any,
    second_mirror: Any,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in tiny_folder.iterdir():
        second_mirror.serve(f"/all/mnist/{path.name}", path.read_bytes())
    monkeypatch.setenv("FFSTREAM_MIRROR", f"{second_mirror.url}/all/")
    assert len(load("mnist", sources=sources).train) == 7
    assert len(second_mirror.requests) == 4
    assert mirror.requests == []


@pytest.mark.parametrize("inner", ["", "mnist"])
def test_files_are_found_in_the_data_folder_or_below_it_without_a_download(
    inner: str, sources: dict[str, Source], mirror: Any, tiny: Dataset, tiny_folder: Path
) -> None:
    data = tiny_folder
    if inner:
        data = tiny_folder.parent / "all"
        data.mkdir()
        tiny_folder.rename(data / inner)
    assert same(load("mnist", data, sources=sources), tiny)
    assert mirror.requests == []


def test_an_incomplete_data_folder_is_an_error_and_not_a_download(
    sources: dict[str, Source], mirror: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load("mnist", tmp_path / "nowhere", sources=sources)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no mnist there; it is empty"):
        load("mnist", tmp_path / "empty", sources=sources)
    assert mirror.requests == []


def test_a_data_set_in_a_folder_is_named_after_the_folder(tiny_folder: Path, tiny: Dataset) -> None:
    read = load(str(tiny_folder))
    assert read.name == "tiny"
    assert same(read, tiny)


def test_the_embedded_digits_are_loaded_by_name() -> None:
    assert len(load("embedded").train) == 10_000


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mnits", "mnist or "),
        ("cifar10", "cifar-10?"),
        ("fashionmnist", "fashion-mnist?"),
        ("emnist", "emnist-bal"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_what_was_meant_and_lists_the_known_ones(
    name: str, meant: str, tmp_path: Path
) -> None:
    for data in (None, tmp_path):
        with pytest.raises(DataError, match=f"'{name}': no such data set") as caught:
            load(name, data)
        assert caught.value.hint.startswith(f"did you mean {meant}")
        assert "mnist, fashion-mnist, kmnist, " in caught.value.hint


def test_the_cache_is_in_the_users_cache_folder_unless_ffstream_cache_moves_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder("mnist") == cache / "mnist"
    monkeypatch.delenv("FFSTREAM_CACHE")
    assert cache_folder("mnist") == platformdirs.user_cache_path("ffstream") / "mnist"


def test_each_file_of_a_known_data_set_has_a_well_formed_checksum() -> None:
    for source in SOURCES.values():
        assert source.mirrors
        for remote in source.files:
            assert remote.checksums
            for checksum in remote.checksums:
                algorithm, _, digest = checksum.partition(":")
                assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
