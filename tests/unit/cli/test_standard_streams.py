"""The daemon's stdout and stderr: writing to them neither blocks nor raises."""

import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ffstream.cli.standard_streams import QueuedStream, write_if_taken
from tests.support import wait_until

WAIT_S = 60.0
LINE = "x" * 99 + "\n"

Queued = Callable[[int], QueuedStream]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read and where to write."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def queued() -> Iterator[Queued]:
    """Makes streams, and closes them: their threads must not outlive the test."""
    with ExitStack() as made:
        yield lambda descriptor: made.enter_context(QueuedStream(descriptor))
    assert not [each.name for each in threading.enumerate() if each.name.startswith("ff-output")]


def read_until(descriptor: int, last: bytes) -> bytes:
    found, deadline = b"", time.monotonic() + WAIT_S
    while not found.endswith(last):
        assert select.select([descriptor], [], [], deadline - time.monotonic())[0], f"not within {WAIT_S} s"
        found += os.read(descriptor, 1 << 16)
    return found


def test_output_is_written_in_order(pipe: tuple[int, int], queued: Queued) -> None:
    stream = queued(pipe[1])
    for at in range(100):
        print(at, file=stream)
    print("Größe \ud800", file=stream)
    assert stream.drain(WAIT_S)
    assert os.read(pipe[0], 1 << 16).decode() == "".join(f"{at}\n" for at in range(100)) + "Größe \\ud800\n"
    assert (stream.dropped, stream.isatty()) == (0, False)


def test_a_pipe_that_is_not_read_does_not_block_and_dropped_lines_are_counted(
    pipe: tuple[int, int], queued: Queued
) -> None:
    stream = queued(pipe[1])

    def write() -> None:
        for _ in range(10_000):  # ten times what the pipe takes, and twice what may wait
            stream.write(LINE)

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(WAIT_S)
    assert not writing.is_alive()
    assert 4_000 < stream.dropped < 10_000
    assert not stream.drain(0.01), "an exit does not wait for a reader"
    reader = threading.Thread(target=lambda: read.append(read_until(pipe[0], b"goes on\n")), daemon=True)
    read: list[bytes] = []
    reader.start()
    assert stream.drain(WAIT_S), "somebody reads again"
    stream.write("goes on\n")
    reader.join(WAIT_S)
    counts = [int(each) for each in re.findall(rb"lines dropped count=(\d+): this stream was not read\n", read[0])]
    assert sum(counts) == stream.dropped
    assert read[0].count(LINE.encode()) == 10_000 - stream.dropped


def test_write_errors_are_ignored_and_a_non_blocking_descriptor_is_waited_for(
    pipe: tuple[int, int], queued: Queued
) -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        stream = queued(full.fileno())
        stream.write(LINE)
        assert stream.drain(WAIT_S)
    os.set_blocking(pipe[1], False)
    stream = queued(pipe[1])
    for _ in range(2_000):
        stream.write(LINE)
    stream.write("end\n")
    assert read_until(pipe[0], b"end\n") == (LINE * 2_000 + "end\n").encode()


def test_write_if_taken_writes_only_if_it_does_not_block(pipe: tuple[int, int]) -> None:
    write_if_taken(pipe[1], b"said")
    assert os.read(pipe[0], 100) == b"said"
    os.set_blocking(pipe[1], False)
    try:
        while True:
            os.write(pipe[1], bytes(4096))
    except BlockingIOError:
        os.set_blocking(pipe[1], True)
    write_if_taken(pipe[1], b"not said")  # it would block here
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        write_if_taken(full.fileno(), b"lost")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_standard_stream_is_replaced_by_dev_null(closed: str) -> None:
    code = (
        "import os; from ffstream.cli.standard_streams import open_standard_streams as f; f();"
        " os._exit(0 if os.open('/dev/null', os.O_RDONLY) > 2 else 1)"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], timeout=WAIT_S, check=False
    )
    assert done.returncode == 0


def test_writer_threads_are_named(queued: Queued) -> None:
    queued(2)
    wait_until(lambda: "ff-output-2" in {each.name for each in threading.enumerate()}, WAIT_S, "the writer runs")
