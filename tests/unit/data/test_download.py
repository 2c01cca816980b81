import fcntl
import hashlib
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ffstream.data.download import LIMITS, Limits, RemoteFile, fetch
from ffstream.errors import DataError

CONTENT = bytes(range(256)) * 1000
REMOTE = RemoteFile("file.gz", (f"sha256:{hashlib.sha256(CONTENT).hexdigest()}",))


def failure(
    folder: Path,
    *urls: str,
    limits: Limits = LIMITS,
    remote: RemoteFile = REMOTE,
    received: int = 0,
) -> str:
    """Return the message of the failure, having checked that it left only what can be continued."""
    with pytest.raises(DataError) as caught:
        fetch(remote, urls, folder, None, limits)
    assert "--data" in caught.value.hint
    assert ("run the command again" in caught.value.hint) == bool(received)
    assert [(path.name, path.stat().st_size) for path in folder.iterdir()] == (
        [(".file.gz.part", received)] if received else []
    )
    return caught.value.message


def test_a_file_is_downloaded_and_progress_reported(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/base/file.gz", CONTENT)
    progress: list[tuple[str, int, int | None]] = []
    path = fetch(REMOTE, [f"{mirror.url}/base/"], tmp_path / "new" / "cache", lambda *step: progress.append(step))
    assert path == tmp_path / "new" / "cache" / "file.gz"
    assert path.read_bytes() == CONTENT
    assert progress[-1] == ("downloading file.gz", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in progress] == sorted({done for _, done, _ in progress})
    assert list(path.parent.iterdir()) == [path]


def test_the_total_is_none_if_the_server_announces_no_length(tmp_path: Path, mirror: Any) -> None:
    def answer(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(CONTENT)

    mirror.answers["/file.gz"] = answer
    totals = set()
    fetch(REMOTE, [mirror.url], tmp_path, lambda name, done, total: totals.add(total))
    assert totals == {None}


def test_any_known_checksum_is_accepted(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT)
    known = (f"sha256:{'0' * 64}", f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert fetch(RemoteFile("file.gz", known), [mirror.url], tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_an_error(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT[:-1] + b"?")
    assert "checksum differs" in failure(tmp_path, mirror.url)


def test_a_truncated_download_is_an_error(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT[:1000], announced=len(CONTENT))
    assert f"ends after 1000 of {len(CONTENT)} bytes" in failure(tmp_path, mirror.url, received=1000)


def test_an_http_error_is_reported(tmp_path: Path, mirror: Any) -> None:
    assert "404" in failure(tmp_path, mirror.url)


def test_a_mirror_that_hangs_is_given_up(tmp_path: Path, mirror: Any) -> None:
    mirror.hang("/file.gz")
    assert "timed out" in failure(tmp_path, mirror.url, limits=Limits(read_s=0.1), received=1)


def test_a_mirror_that_is_too_slow_for_the_file_is_given_up(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT)
    assert "not finished after 0 s" in failure(tmp_path, mirror.url, limits=Limits(file_s=0))


def test_an_announced_length_above_the_limit_is_an_error(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT)
    assert f"announces {len(CONTENT)} bytes" in failure(tmp_path, mirror.url, remote=replace(REMOTE, max_bytes=1000))


def test_a_download_without_an_end_stops_at_the_limit(tmp_path: Path, mirror: Any) -> None:
    mirror.serve_endless("/file.gz")
    assert "more than the limit" in failure(tmp_path, mirror.url, remote=replace(REMOTE, max_bytes=100_000))


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "http://[", "http://127.0.0.1:1/a b\n"])
def test_an_unreachable_mirror_is_reported_like_any_other_failure(tmp_path: Path, url: str) -> None:
    assert f"{url}/file.gz: " in failure(tmp_path, url)


def test_an_answer_that_is_not_http_is_reported_like_any_other_failure(tmp_path: Path, mirror: Any) -> None:
    mirror.answers["/file.gz"] = lambda request: request.wfile.write(b"hello\r\n\r\n")
    assert "hello" in failure(tmp_path, mirror.url)


def test_the_next_mirror_is_tried_after_each_kind_of_failure(
    tmp_path: Path, mirror: Any, second_mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.hang("/hangs/file.gz")
    mirror.serve("/wrong/file.gz", b"other")
    mirror.serve("/short/file.gz", b"x", announced=10)
    second_mirror.serve("/file.gz", CONTENT)
    bases = [*(f"{mirror.url}/{kind}" for kind in ("missing", "hangs", "wrong", "short")), second_mirror.url]
    urlopen = urllib.request.urlopen

    def impatient(request: urllib.request.Request, timeout: float) -> Any:
        # Only with the one that hangs: the others, however slow the machine is, must fail or deliver by themselves.
        return urlopen(request, timeout=0.1 if "/hangs/" in request.full_url else timeout)

    monkeypatch.setattr(urllib.request, "urlopen", impatient)
    assert fetch(REMOTE, bases, tmp_path).read_bytes() == CONTENT
    # The byte that came before the hang does not fit the file of the next mirror, which is asked for all of it then.
    kinds = ("missing", "hangs", "wrong", "wrong", "short")
    assert mirror.requests == [f"/{kind}/file.gz" for kind in kinds]


def test_when_all_mirrors_fail_the_error_lists_each_with_its_failure(
    tmp_path: Path, mirror: Any, second_mirror: Any
) -> None:
    second_mirror.serve("/file.gz", b"other")
    message = failure(tmp_path, mirror.url, second_mirror.url)
    assert f"{mirror.url}/file.gz: HTTP Error 404" in message
    assert f"{second_mirror.url}/file.gz: checksum differs" in message


def test_a_folder_that_cannot_be_written_is_not_reported_as_a_failed_download(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT)
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written") as caught:
        fetch(REMOTE, [mirror.url, mirror.url], tmp_path / "a file")
    assert "FFSTREAM_CACHE" in caught.value.hint


# --- continuing -----------------------------------------------------------------------------------------------------


def interrupted(mirror: Any, folder: Path) -> int:
    """Interrupts a download after its first bytes, and returns how many they are."""
    mirror.serve("/file.gz", CONTENT)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(REMOTE, [mirror.url], folder, interrupt)
    mirror.ranges.clear()
    return (folder / ".file.gz.part").stat().st_size


def test_an_interrupted_download_is_continued_and_keeps_the_old_file_until_it_is_complete(
    tmp_path: Path, mirror: Any
) -> None:
    (tmp_path / "file.gz").write_bytes(b"older")
    received = interrupted(mirror, tmp_path)
    assert 0 < received < len(CONTENT)
    assert (tmp_path / "file.gz").read_bytes() == b"older"
    progress: list[int] = []
    fetch(REMOTE, [mirror.url], tmp_path, lambda what, done, total: progress.append(done))
    assert mirror.ranges == [f"bytes={received}-"]
    assert received < progress[0] <= progress[-1] == len(CONTENT)
    assert list(tmp_path.iterdir()) == [tmp_path / "file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


def test_the_next_mirror_continues_what_the_first_one_began(tmp_path: Path, mirror: Any, second_mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT[:1000], announced=len(CONTENT))
    second_mirror.serve("/file.gz", CONTENT)
    assert fetch(REMOTE, [mirror.url, second_mirror.url], tmp_path).read_bytes() == CONTENT
    assert second_mirror.ranges == ["bytes=1000-"]


def test_a_server_without_ranges_sends_the_file_again_from_its_beginning(tmp_path: Path, mirror: Any) -> None:
    received = interrupted(mirror, tmp_path)
    mirror.serve("/file.gz", CONTENT, ranges=False)
    assert fetch(REMOTE, [mirror.url], tmp_path).read_bytes() == CONTENT
    assert mirror.ranges == [f"bytes={received}-"]


@pytest.mark.parametrize("start", [b"other bytes", CONTENT + b"more"])
def test_a_beginning_that_does_not_fit_is_dropped_and_the_whole_file_is_downloaded(
    tmp_path: Path, mirror: Any, start: bytes
) -> None:
    (tmp_path / ".file.gz.part").write_bytes(start)
    mirror.serve("/file.gz", CONTENT)
    assert fetch(REMOTE, [mirror.url], tmp_path).read_bytes() == CONTENT
    assert mirror.ranges == [f"bytes={len(start)}-", None]


def test_an_answer_for_another_range_is_not_used(tmp_path: Path, mirror: Any) -> None:
    interrupted(mirror, tmp_path)
    mirror.serve("/file.gz", CONTENT, shift=1)
    assert fetch(REMOTE, [mirror.url], tmp_path).read_bytes() == CONTENT


def test_a_file_that_was_complete_but_not_yet_renamed_needs_no_request(tmp_path: Path, mirror: Any) -> None:
    (tmp_path / ".file.gz.part").write_bytes(CONTENT)
    assert fetch(REMOTE, [mirror.url], tmp_path).read_bytes() == CONTENT
    assert mirror.requests == []


def test_a_download_in_another_process_is_not_disturbed(tmp_path: Path, mirror: Any) -> None:
    mirror.serve("/file.gz", CONTENT)
    part = tmp_path / ".file.gz.part"
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"begun")
        other.flush()
        assert fetch(REMOTE, [mirror.url], tmp_path).read_bytes() == CONTENT
        assert part.read_bytes() == b"begun"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.gz.part", "file.gz"]
