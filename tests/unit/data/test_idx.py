import contextlib
import gzip
import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ffstream.data.idx import ELEMENT_TYPES, IdxArray, read_idx, write_idx
from ffstream.errors import DataError

ARRAYS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
PAIR = struct.pack(">HBBI", 0, 8, 1, 2) + b"\x05\x09"


def read_bytes(content: bytes, *, max_bytes: int = 1 << 20) -> IdxArray:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        return read_idx(path, max_bytes=max_bytes)


def test_a_handwritten_file_is_read() -> None:
    content = bytes.fromhex("00 00 08 02  00 00 00 02  00 00 00 03") + bytes([1, 2, 3, 4, 5, 6])
    assert read_bytes(content).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("code", "numbers", "content"),
    [
        (0x08, [1, 255], "01 ff"),
        (0x09, [1, -1], "01 ff"),
        (0x0B, [1, -2], "0001 fffe"),
        (0x0C, [258, -1], "00000102 ffffffff"),
        (0x0D, [1.0, -2.0], "3f800000 c0000000"),
        (0x0E, [1.0, -2.0], "3ff0000000000000 c000000000000000"),
    ],
)
def test_every_element_type_is_read_big_endian(code: int, numbers: list[float], content: str) -> None:
    read = read_bytes(struct.pack(">HBBI", 0, code, 1, 2) + bytes.fromhex(content))
    assert read.tolist() == numbers
    assert read.dtype.isnative
    limit = read.nbytes - 1
    with pytest.raises(DataError, match="more than the limit"):
        read_bytes(struct.pack(">HBBI", 0, code, 1, 2) + bytes.fromhex(content), max_bytes=limit)


@given(array=ARRAYS, name=st.sampled_from(["a", "a.gz"]))
def test_written_arrays_are_read_back(array: npt.NDArray[np.uint8], name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_idx(path, array)
        read = read_idx(path)
    assert read.dtype == np.uint8
    assert read.shape == array.shape
    assert np.array_equal(read, array)


def test_only_a_gz_file_is_gzipped_and_its_bytes_contain_no_time_or_name(tmp_path: Path) -> None:
    for name in "a", "a.gz", "b.gz":
        write_idx(tmp_path / name, np.array([5, 9], np.uint8))
    packed = (tmp_path / "a.gz").read_bytes()
    assert (tmp_path / "a").read_bytes() == gzip.decompress(packed) == PAIR
    assert packed[3] == 0, "gzip flags: no name"
    assert packed[4:8] == bytes(4), "gzip time"
    assert packed == (tmp_path / "b.gz").read_bytes()


def test_gzip_is_recognised_by_its_first_bytes_and_not_by_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "zipped").write_bytes(gzip.compress(PAIR))
    (tmp_path / "plain.gz").write_bytes(PAIR)
    assert read_idx(tmp_path / "zipped").tolist() == read_idx(tmp_path / "plain.gz").tolist() == [5, 9]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "magic"),
        (PAIR[:3], "magic"),
        (b"\x01" + PAIR[1:], "magic"),
        (b"\0\0\x0a\x01" + PAIR[4:], "0x0a, expected one of 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e"),
        (b"\0\0\x0c\x01" + PAIR[4:], "ends after 0 of 2"),
        (b"\0\0\x08\x00", "0 dimensions"),
        (b"\0\0\x08\x05" + bytes(20), "5 dimensions"),
        (PAIR[:6], "within the header"),
        (PAIR[:-1], "1 of 2"),
        (PAIR + b"\0", "more bytes"),
        (struct.pack(">HBBI", 0, 8, 1, 0xFFFFFFFF), "more than the limit"),
        (struct.pack(">HBBII", 0, 8, 2, 0, 0xFFFFFFFF), "more than the limit"),
    ],
)
def test_a_damaged_file_is_an_error_with_the_reason_and_a_hint(
    pack: Callable[[bytes], bytes], content: bytes, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_bytes(pack(content))
    assert "/file: " in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("cut", range(2, len(gzip.compress(PAIR))))
def test_a_gzip_stream_truncated_anywhere_is_an_error(cut: int) -> None:
    with pytest.raises(DataError, match="gzip stream is damaged"):
        read_bytes(gzip.compress(PAIR)[:cut])


def test_a_wrong_gzip_checksum_is_an_error() -> None:
    packed = bytearray(gzip.compress(PAIR))
    packed[-8] ^= 1
    with pytest.raises(DataError, match="CRC"):
        read_bytes(bytes(packed))


@given(array=ARRAYS, data=st.data(), pack=st.sampled_from([bytes, gzip.compress]))
def test_damaged_bytes_lead_to_a_data_error_or_an_array(
    array: npt.NDArray[np.uint8], data: st.DataObject, pack: Callable[[bytes], bytes]
) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    damaged = bytearray(pack(content))
    position = data.draw(st.integers(0, len(damaged) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert"])):
        case "flip":
            damaged[position] ^= data.draw(st.integers(1, 255))
        case "cut":
            del damaged[position:]
        case "insert":
            damaged[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    try:
        read = read_bytes(bytes(damaged))
    except DataError:
        return
    assert read.dtype in {np.dtype(each[1:]) for each in ELEMENT_TYPES.values()}
    assert read.size == math.prod(read.shape)


@given(content=st.binary(max_size=64), start=st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\0\0\x08"]))
def test_random_bytes_lead_to_a_data_error_or_an_array(content: bytes, start: bytes) -> None:
    with contextlib.suppress(DataError):
        read_bytes(start + content)


def peak_bytes_while_refusing(content: bytes, max_bytes: int) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_bytes(content, max_bytes=max_bytes)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_header_that_announces_much_allocates_no_memory() -> None:
    claim = struct.pack(">HBBI", 0, 8, 1, 1 << 30)
    assert peak_bytes_while_refusing(claim + b"x", 1 << 30) < 4 << 20


def test_a_gzip_bomb_is_not_expanded() -> None:
    bomb = gzip.compress(PAIR + bytes(64 << 20))
    assert peak_bytes_while_refusing(bomb, 1 << 30) < 4 << 20


@pytest.mark.parametrize("path", ["missing", "."])
def test_a_path_that_cannot_be_read_is_an_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / path)


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.uint8(3), np.zeros((1,) * 5, np.uint8)])
def test_an_array_that_the_format_cannot_hold_is_not_written(tmp_path: Path, array: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="write_idx writes"):
        write_idx(tmp_path / "a", array)
    assert not (tmp_path / "a").exists()
