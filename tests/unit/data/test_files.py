"""Places: folders and archives, whole and damaged ones."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from ffstream.data import Dataset, files, load
from ffstream.errors import DataError
from tests.unit.data.test_dataset import assert_same


def archived(folder: Path, path: Path) -> Path:
    """The folder in an archive of the kind that the name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"inner/{file.name}")
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            archive.add(folder, "inner")
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "A.TGZ"])
def test_idx_files_are_read_from_an_archive(tmp_path: Path, tiny_folder: Path, tiny: Dataset, name: str) -> None:
    assert_same(load(str(archived(tiny_folder, tmp_path / name))), tiny)


def test_an_archive_in_the_given_folder_is_searched_if_the_folder_has_nothing_else(
    tmp_path: Path, tiny_folder: Path, tiny: Dataset
) -> None:
    path = archived(tiny_folder, tmp_path / "mnist.zip")
    shutil.rmtree(tiny_folder)
    dataset = load(str(tmp_path))
    assert_same(dataset, tiny)
    assert (dataset.name, dataset.folder) == ("mnist", path / "inner")
    shutil.copy(path, tmp_path / "fashion.zip")
    with pytest.raises(DataError, match=r"contains several data sets: fashion-mnist, mnist"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("kept", [0, 0.3])
def test_a_damaged_archive_is_an_error_that_names_it(
    tmp_path: Path, tiny_folder: Path, name: str, kept: float
) -> None:
    path = archived(tiny_folder, tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    shutil.rmtree(tiny_folder)
    for place in (path, tmp_path):
        with pytest.raises(DataError, match=name) as caught:
            load(str(place)).split("train")
        assert caught.value.hint


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\x04" + bytes(6), b"\x1f\x8b", b"no gzip" * 100])
def test_a_gzip_header_that_is_damaged_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.tar.gz: cannot be read"):
        load(str(tmp_path / "a.tar.gz"))


def test_a_zip_with_wrong_bytes_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    path = archived(tiny_folder, tmp_path / "a.zip")
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    content = bytearray(path.read_bytes())
    content[first.header_offset + 30 + len(first.filename) + 20] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.zip: cannot be read"):
        assert load(str(path)).test


def test_a_file_that_is_no_archive_is_an_error_that_says_what_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "images.h5").touch()
    with pytest.raises(DataError, match=r"images.h5: neither a folder nor an archive") as caught:
        load(str(tmp_path / "images.h5"))
    assert ".zip" in caught.value.hint


def test_a_file_that_vanishes_between_listing_and_reading_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    dataset = load(str(tiny_folder))
    (tiny_folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz"):
        dataset.split("train")


def test_files_over_the_limits_are_an_error(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MEMBER_MAX_BYTES", 10)
    with pytest.raises(DataError, match="the limit is 10"):
        load(str(tiny_folder)).split("train")
    monkeypatch.setattr(files, "_MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="has more than 3 files"):
        load(str(tiny_folder))
