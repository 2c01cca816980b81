"""The manifest of a checkpoint, which tells a whole checkpoint from a damaged one. Needs no torch.

`store.py` describes the format. In every format, `format` is a number and `check` is the SHA-256 of the other keys.
"""

import errno
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from ffstream.checkpoint import formats
from ffstream.errors import CheckpointDamaged, Unavailable

CHECKPOINTS = "checkpoints"  # the folder of all checkpoints, in a state folder
STATE = "state.safetensors"
MANIFEST = "manifest.json"
WRITING = ".writing-"  # with the sequence number: the folder's name until the checkpoint is complete
# SHA-256 takes 30 times as long, which learning would notice. Both detect accidental damage. Neither detects
# tampering: anyone who can write here can also write a manifest.
CHECKSUM = "xxh3_128"
_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_NUMBER = re.compile(r"\d{20}", re.ASCII)
_HALF_WRITTEN = re.compile(rf"{re.escape(WRITING)}\d+", re.ASCII)


def folder_of(folder: Path, seq: int) -> Path:
    """The folder of the checkpoint with that sequence number."""
    return folder / f"{seq:020d}"


def seqs(folder: Path) -> list[int]:
    """Sequence numbers of the checkpoints that have a manifest, oldest first.

    Raises Unavailable if the folder cannot be read: learning must not start over because of that.
    """
    try:
        names = [each.name for each in folder.iterdir() if _NUMBER.fullmatch(each.name)]
        return sorted(int(name) for name in names if (folder / name / MANIFEST).exists())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(
            f"{error.filename or folder}: {error.strerror}",
            hint="check that this user may read it and that file descriptors are left",
        ) from error


def half_written(folder: Path) -> list[Path]:
    """Checkpoint folders without a manifest: being written, or left by a crash. Other folders are ignored."""
    if not folder.is_dir():
        return []
    ours = (each for each in folder.iterdir() if _NUMBER.fullmatch(each.name) or _HALF_WRITTEN.fullmatch(each.name))
    return sorted(each for each in ours if each.is_dir() and not (each / MANIFEST).exists())


def sign(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its checksum."""
    return {**manifest, "check": _check(manifest)}


def read(folder: Path, seq: int) -> dict[str, Any]:
    """The manifest of a checkpoint whose files have the right sizes.

    Its recipe has all options of the current format. Raises CheckpointDamaged, and CheckpointIncompatible for a newer
    format.
    """
    return read_at(folder_of(folder, seq))


def read_at(here: Path) -> dict[str, Any]:
    """The same for the checkpoint in the folder `here`, which may have been renamed."""
    expected_seq = int(here.name) if _NUMBER.fullmatch(here.name) else None
    name = here.name if expected_seq is None else expected_seq
    try:
        manifest: dict[str, Any] = json.loads((here / MANIFEST).read_bytes())
        if manifest.pop("check") != _check(manifest):
            raise damaged(name, f"{MANIFEST}: wrong checksum")
        version = formats.expect_format(manifest["format"], f"checkpoint {name}")
        seq = manifest["seq"]
        if type(seq) is not int or expected_seq not in (None, seq):
            raise damaged(name, f"{MANIFEST} is that of checkpoint {seq!r}")
        for key in ("recipe", "progress", "files"):
            if not isinstance(manifest[key], dict):
                raise damaged(name, f"{MANIFEST}: {key} is not a map")
        if STATE not in manifest["files"]:  # its checksum would be unknown
            raise damaged(name, f"{MANIFEST}: {STATE} is not listed")
        for file, expected in manifest["files"].items():
            size = (here / Path(file).name).stat().st_size
            if size != expected["bytes"]:
                raise damaged(name, f"{file}: {size} bytes, not {expected['bytes']}")
            if not isinstance(expected[CHECKSUM], str):
                raise damaged(name, f"{MANIFEST}: {file} has no checksum")
        manifest["recipe"] = formats.complete(manifest["recipe"], version)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(name, f"cannot be read: {error}") from error
    return manifest


def clock_and_size(folder: Path, seq: int) -> tuple[float, int]:
    """`clock_s` of a checkpoint and the bytes of its files. Checksums are not verified.

    Where the manifest is damaged, `clock_s` is 0.0. Raises OSError if there are not enough descriptors or memory to
    tell.
    """
    here = folder_of(folder, seq)
    clock_s, size = 0.0, 0
    try:
        size = sum(path.stat().st_size for path in here.iterdir())
        clock_s = float(json.loads((here / MANIFEST).read_bytes())["clock_s"])
    except OSError as error:
        if error.errno in _SHORTAGE:
            raise
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return (clock_s if math.isfinite(clock_s) else 0.0), size


def verify(folder: Path, seq: int) -> dict[str, Any]:
    """The manifest of a checkpoint whose files were read to the last byte. Raises what `read` raises."""
    return verify_at(folder_of(folder, seq))


def verify_at(here: Path) -> dict[str, Any]:
    """The same for the checkpoint in the folder `here`, which may have been renamed."""
    manifest = read_at(here)
    for file, expected in manifest["files"].items():
        try:
            found = checksum(here / Path(file).name)
        except OSError as error:
            raise damaged(manifest["seq"], f"cannot be read: {error}") from error
        if found != expected[CHECKSUM]:
            raise damaged(manifest["seq"], f"{file}: wrong checksum")
    return manifest


def damaged(seq: int | str, what: str) -> CheckpointDamaged:
    """The error for a checkpoint that is not whole."""
    return CheckpointDamaged(
        f"checkpoint {seq}: {what}", hint="recovery uses an older checkpoint and the journal from there on"
    )


def checksum(path: Path) -> str:
    """The XXH3 checksum of a file, in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _check(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
