"""What tells a whole checkpoint from a damaged one: its manifest and the files' checksums. Needs no torch.

The format stands in `store`.
"""

import errno
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from ffstream.errors import CheckpointDamaged, CheckpointIncompatible, Unavailable
from ffstream.util.option_errors import show

FORMAT = 1
STATE = "state.safetensors"
MANIFEST = "manifest.json"
# SHA-256 takes thirty times as long, time that learning would miss. Both find whatever chance damages, and neither
# what is done on purpose: who can write here can write a manifest, too.
CHECKSUM = "xxh3_128"
_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
WRITING = ".writing-"  # and the sequence number: a checkpoint until it has its name
_NUMBER = re.compile(r"\d{20}", re.ASCII)
_HALF = re.compile(rf"{re.escape(WRITING)}\d+", re.ASCII)
_CHECKSUMS: dict[str, Callable[[], Any]] = {
    CHECKSUM: xxhash.xxh3_128,
    "sha256": hashlib.sha256,  # of earlier versions
}


def folder_of(folder: Path, seq: int) -> Path:
    """Where the checkpoint of that sequence number lies."""
    return folder / f"{seq:020d}"


def seqs(folder: Path) -> list[int]:
    """Sequence numbers of the checkpoints that have a manifest, oldest first. Raises Unavailable.

    What cannot be looked at is not absent: a learner would begin anew beside it.
    """
    try:
        names = [each.name for each in folder.iterdir() if _NUMBER.fullmatch(each.name)]
        return sorted(int(name) for name in names if (folder / name / MANIFEST).exists())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(
            f"{error.filename or folder}: {error.strerror}", hint="may this user read it, and are descriptors left?"
        ) from error


def half_written(folder: Path) -> list[Path]:
    """Folders without a manifest: being written, or left by a death. Not what somebody else keeps there."""
    if not folder.is_dir():
        return []
    ours = (each for each in folder.iterdir() if _NUMBER.fullmatch(each.name) or _HALF.fullmatch(each.name))
    return sorted(each for each in ours if each.is_dir() and not (each / MANIFEST).exists())


def sign(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the checksum that makes it one."""
    return {**manifest, "check": _check(manifest)}


def read(folder: Path, seq: int) -> dict[str, Any]:
    """The manifest, once its checksum and its files' sizes are right. Raises CheckpointDamaged."""
    here = folder_of(folder, seq)
    try:
        manifest: dict[str, Any] = json.loads((here / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["seq"] != seq:
            raise damaged(seq, "the manifest is of another format or checkpoint")
        if manifest.pop("check") != _check(manifest):
            raise damaged(seq, f"{MANIFEST}: checksum differs")
        for part in ("recipe", "progress", "files"):
            if not isinstance(manifest[part], dict):
                raise damaged(seq, f"{MANIFEST}: {part} is no map")
        if STATE not in manifest["files"]:  # then nothing would vouch for it
            raise damaged(seq, f"{MANIFEST}: {STATE} is not listed")
        for name, expected in manifest["files"].items():
            size = (here / Path(name).name).stat().st_size
            if size != expected["bytes"]:
                raise damaged(seq, f"{name}: {size} bytes, not {expected['bytes']}")
            if not isinstance(expected[_kind(expected)], str):
                raise damaged(seq, f"{MANIFEST}: {name} has no checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(seq, f"unreadable: {error}") from error
    return manifest


def clock_and_size(folder: Path, seq: int) -> tuple[float, int]:
    """`clock_s` of a checkpoint, and the bytes of its files; no checksum is computed.

    0.0 where the manifest has no such number: of an earlier version, or damaged, which is for others to find. Raises
    OSError when that cannot be told, because descriptors or memory are short.
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
    """The manifest of a whole checkpoint: every byte of its files was looked at. Raises CheckpointDamaged."""
    manifest = read(folder, seq)
    for name, expected in manifest["files"].items():
        try:
            found = checksum(folder_of(folder, seq) / Path(name).name, _kind(expected))
        except OSError as error:
            raise damaged(seq, f"unreadable: {error}") from error
        if found != expected[_kind(expected)]:
            raise damaged(seq, f"{name}: checksum differs")
    return manifest


def expect_recipe(manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raises CheckpointIncompatible unless the checkpoint is of this recipe, which looks as JSON gives it back."""
    found, recipe = _flat(manifest["recipe"]), _flat(recipe)
    changed = [key for key in sorted({*found, *recipe}) if found.get(key) != recipe.get(key)]
    if not changed:
        return
    differences = "; ".join(f"network.{key} = {_shown(recipe, key)}, not {_shown(found, key)}" for key in changed[:3])
    more = f"; and {len(changed) - 3} more options" if len(changed) > 3 else ""
    raise CheckpointIncompatible(
        f"the options are not those that checkpoint {manifest['seq']} was learned with: {differences}{more}",
        hint="set them as they were (ffstream checkpoint list --json shows all), or use another --state folder",
    )


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Options by their dotted names, those of layers as `layers[0].learning_rate`."""
    if isinstance(tree, Mapping):
        inner = [(f"{name}.{key}" if name else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(each, Mapping) for each in tree):
        inner = [(f"{name}[{index}]", value) for index, value in enumerate(tree)]
        inner.append((f"{name} (how many)", len(tree)))
    else:
        return {name: tree}
    return {key: value for part, each in inner for key, value in _flat(each, part).items()}


def _shown(recipe: Mapping[str, Any], key: str) -> str:
    return show(recipe[key]) if key in recipe else "absent"


def damaged(seq: int, what: str) -> CheckpointDamaged:
    """The error for a checkpoint that is not whole."""
    return CheckpointDamaged(f"checkpoint {seq}: {what}", hint="an older one is used, and the journal from there on")


def checksum(path: Path, kind: str = CHECKSUM) -> str:
    """Of a file, in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _CHECKSUMS[kind]).hexdigest()


def _kind(expected: Mapping[str, Any]) -> str:
    """Under which name a file's checksum stands."""
    return CHECKSUM if CHECKSUM in expected else "sha256"


def _check(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
