"""Images in files become what the network takes, or an error that says what to do."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ffstream.cli.images import Named, Wanted, in_queries, read_images
from ffstream.data.idx import write_idx
from ffstream.errors import BadDtype, BadShape, DataError
from ffstream.wire.messages import Welcome

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RED = np.dstack((GREY, np.zeros_like(GREY), np.zeros_like(GREY)))


def wanted(shape: list[int], **options: bool) -> Wanted:
    welcome = Welcome(
        socket="predict",
        boot="1",
        max_samples=8,
        max_bytes=1000,
        inputs=int(np.prod(shape)),
        image_shape=shape,
        labels=4,
    )
    return Wanted(welcome, **options)


def picture(folder: Path, pixels: NDArray[Any], kind: str = "PNG", mode: str | None = None) -> str:
    path = folder / f"picture.{kind.lower()}"
    Image.fromarray(pixels).convert(mode).save(path, kind)
    return str(path)


def one(place: str, given: Wanted) -> NDArray[Any]:
    (named,) = read_images(place, given)
    assert named.name == place
    return named.image


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ([3, 4], GREY),
        ([3, 4, 1], GREY[..., None]),
        ([12], GREY.ravel()),
        ([3, 4, 3], np.dstack([GREY] * 3)),
        ([36], np.dstack([GREY] * 3).ravel()),
        ([3, 4, 4], np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])),
    ],
)
def test_a_grey_picture_fits_networks_of_every_shape(tmp_path: Path, shape: list[int], want: NDArray[Any]) -> None:
    image = one(picture(tmp_path, GREY), wanted(shape))
    assert image.dtype == np.uint8
    assert np.array_equal(image, want)


def test_colours_become_grey_for_a_network_with_one_channel(tmp_path: Path) -> None:
    path = picture(tmp_path, RED)
    assert np.array_equal(one(path, wanted([3, 4, 3])), RED)
    grey = one(path, wanted([3, 4]))
    assert np.abs(grey - GREY * 0.299).max() <= 1, "ITU-R 601"


@pytest.mark.parametrize("mode", ["P", "1", "LA", "CMYK"])
def test_other_modes_are_converted(tmp_path: Path, mode: str) -> None:
    pixels = np.where(GREY > 100, np.uint8(255), np.uint8(0))
    path = picture(tmp_path, pixels, "JPEG" if mode == "CMYK" else "PNG", mode)
    assert np.abs(one(path, wanted([3, 4])).astype(int) - pixels).max() <= (12 if mode == "CMYK" else 0)


def test_transparent_places_count_as_white(tmp_path: Path) -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    pixels[0, 0] = (10, 10, 10, 255)
    path = picture(tmp_path, pixels)
    grey = one(path, wanted([3, 4]))
    assert grey[0, 0] == 10
    assert (grey.ravel()[1:] == 255).all()
    assert np.array_equal(one(path, wanted([3, 4, 4])), pixels)


def test_dark_and_light_are_swapped_on_request(tmp_path: Path) -> None:
    assert np.array_equal(one(picture(tmp_path, GREY), wanted([3, 4], invert=True)), 255 - GREY)


def test_another_size_is_an_error_unless_the_picture_is_to_be_resized(tmp_path: Path) -> None:
    path = picture(tmp_path, np.repeat(np.repeat(GREY, 5, 0), 5, 1))
    with pytest.raises(BadShape, match="the picture is 15×20, the network takes 3×4") as caught:
        read_images(path, wanted([3, 4]))
    assert "--resize" in caught.value.hint
    resized = one(path, wanted([3, 4], resize=True)).astype(int)
    assert np.abs(resized - GREY).max() < 30
    assert one(path, wanted([2, 2, 3], resize=True)).shape == (2, 2, 3)


def test_a_flat_network_takes_pictures_that_have_its_number_of_values(tmp_path: Path) -> None:
    path = picture(tmp_path, GREY)
    with pytest.raises(BadShape, match="flat images of 16 values, the picture is 3×4") as caught:
        read_images(path, wanted([16]))
    assert "4×4" in caught.value.hint
    assert one(path, wanted([16], resize=True)).shape == (16,)
    with pytest.raises(BadShape, match="flat images of 15 values"):
        read_images(path, wanted([15], resize=True))


def test_a_picture_is_shown_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(np.repeat(np.repeat(GREY, 8, 0), 8, 1)).save(path, exif=exif, quality=95)
    upright = one(str(path), wanted([32, 24])).astype(int)
    assert np.abs(upright - np.rot90(np.repeat(np.repeat(GREY, 8, 0), 8, 1), -1)).mean() < 10


def test_a_network_with_other_channels_takes_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadShape, match=r"the network takes images \[3, 4, 2\]") as caught:
        read_images(picture(tmp_path, GREY), wanted([3, 4, 2]))
    assert "array" in caught.value.hint


def test_more_than_eight_bits_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(GREY.astype(np.uint16) * 256).save(path)
    with pytest.raises(BadDtype, match="more than 8 bits"):
        read_images(str(path), wanted([3, 4]))


def test_a_damaged_picture_is_an_error(tmp_path: Path) -> None:
    path = Path(picture(tmp_path, GREY))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a whole PNG or JPEG picture"):
        read_images(str(path), wanted([3, 4]))


# --- arrays ------------------------------------------------------------------------------------------------------


def saved(folder: Path, array: NDArray[Any], kind: str) -> str:
    path = folder / "images"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, array)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez_compressed(file, anything=array)
    else:
        write_idx(path, array)
        if kind == "idx.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "idx", "idx.gz"])
@pytest.mark.parametrize("shape", [[3, 4], [12]])
def test_arrays_of_one_or_several_images_are_taken_as_they_are(tmp_path: Path, kind: str, shape: list[int]) -> None:
    several = np.stack([GREY, GREY + 1]).reshape(2, *shape)
    path = saved(tmp_path, several, kind)
    for given in (wanted([3, 4]), wanted([3, 4], resize=True)):
        images = read_images(path, given)
        assert [each.name for each in images] == [f"{path}[0]", f"{path}[1]"]
        assert np.array_equal(np.stack([each.image for each in images]), several)
    assert np.array_equal(one(saved(tmp_path, several[0], kind), wanted([3, 4])), several[0])


def test_floats_stay_floats_and_are_inverted_as_such(tmp_path: Path) -> None:
    path = saved(tmp_path, GREY / 255, "npy")
    assert np.array_equal(one(path, wanted([3, 4])), GREY / 255)
    assert np.array_equal(one(path, wanted([3, 4], invert=True)), 1 - GREY / 255)
    assert np.array_equal(one(saved(tmp_path, GREY > 9, "npy"), wanted([3, 4], invert=True)), GREY <= 9)
    with pytest.raises(BadDtype, match="int64"):
        read_images(saved(tmp_path, GREY.astype(np.int64), "npy"), wanted([3, 4], invert=True))


def test_an_archive_has_its_images_under_that_name(tmp_path: Path) -> None:
    path = tmp_path / "both.npz"
    np.savez(path, images=GREY[None], labels=np.array([3]))
    assert np.array_equal(one(str(path), wanted([3, 4])), GREY)
    np.savez(path, x=GREY[None], y=np.array([3]))
    with pytest.raises(DataError, match="the arrays are x, y") as caught:
        read_images(str(path), wanted([3, 4]))
    assert "images" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither PNG"),
        (b"GIF89a", "neither PNG"),
        (b"\x93NUMPY\x01\0", "cannot be read"),
        (b"PK\x03\x04", "cannot be read"),
        (b"\0\0\x08\x03\0\0", "ends within the header"),
        (b"\x1f\x8b\x08", "gzip stream is damaged"),
    ],
)
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_images(str(path), wanted([3, 4]))
    assert caught.value.hint


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_images(str(path), wanted([3, 4]))


def test_a_missing_file_and_a_wrong_shape_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^[^:]*: cannot be read: No such file or directory \["):
        read_images(str(tmp_path / "none"), wanted([3, 4]))
    with pytest.raises(BadShape, match=r"an array of the shape \[4, 3\]") as caught:
        read_images(saved(tmp_path, GREY.T.copy(), "npy"), wanted([3, 4]))
    assert "first axis" in caught.value.hint


def test_images_are_read_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    np.save(content, GREY)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.getvalue())))
    (named,) = read_images("-", wanted([3, 4]))
    assert named.name == "stdin"
    assert np.array_equal(named.image, GREY)


def test_queries_hold_as_many_images_as_the_daemon_takes() -> None:
    welcome = wanted([3, 4]).welcome
    images = [Named(str(at), GREY) for at in range(20)] + [Named("float", GREY / 255)]
    parts = in_queries(images, welcome)
    assert [len(part) for part in parts] == [8, 8, 4, 1]
    assert [each.name for part in parts for each in part] == [each.name for each in images]
    small = welcome.model_copy(update={"max_bytes": 100})
    assert max(len(part) for part in in_queries(images, small)) == 2
