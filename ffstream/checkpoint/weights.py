"""Weights that predict, outside a daemon: in a file that `ffstream export` wrote, or in a checkpoint.

An exported file is a safetensors file with the tensors of `Network.weights`, in float32, and this metadata, all text:

    format        "ffstream-weights"                   version      format version (see formats.py)
    recipe        all options of the network, as JSON  ffstream     version of ffstream that wrote the file
    image_shape   of the recipe, as JSON               labels       of the recipe
    seq           last sample that was learned         checksum     of recipe, seq and tensors: see `checksum`

It is valid if and only if the checksum is right. It is written under another name, fsynced and renamed, so a crash
never leaves an incomplete file under the final name.

>>> saved = load("digits.safetensors")           # or a checkpoint's folder, or a state folder
>>> saved.network().classifier().predict(images).labels_B
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ffstream import __version__
from ffstream.checkpoint import formats, manifest
from ffstream.checkpoint.manifest import CHECKPOINTS, MANIFEST, STATE
from ffstream.checkpoint.replicas import further_replicas
from ffstream.checkpoint.tensors import bytes_of, save
from ffstream.errors import CheckpointDamaged, CheckpointIncompatible, ConfigError, Unavailable
from ffstream.ff.merging import averaged
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe, stored_recipe
from ffstream.util.durable import fsync, fsync_entry
from ffstream.util.option_errors import OptionError

_KIND = "ffstream-weights"
_ATTEMPTS = 5
_REPLAY = "replay."  # tensors of a checkpoint that belong to no layer


class Weights(NamedTuple):
    """EMA weights, the recipe of their network, and the last sample of the stream that they have learned."""

    recipe: Recipe
    tensors: dict[str, Tensor]
    seq: int = 0

    def network(self, placement: Placement | None = None) -> Network:
        """A network with these weights. Its optimiser, schedule and preprocessing begin as in a new network.

        Raises CheckpointIncompatible.
        """
        network = Network(self.recipe, placement)
        try:
            network.load_weights(self.tensors)
        except ValueError as error:
            raise CheckpointIncompatible(f"the weights do not fit their recipe: {error}") from error
        return network

    def checksum(self) -> str:
        """XXH3-128 of recipe and seq, and of the name, dtype, shape and bytes of each tensor, in hexadecimal
        digits."""
        return _checksum(_recipe_json(self.recipe), self.seq, self.tensors)


def of_network(network: Network, seq: int = 0) -> Weights:
    """The EMA weights of a network now, as a copy."""
    return Weights(network.recipe, {name: tensor.float() for name, tensor in network.weights().items()}, seq)


def load(source: Path | str) -> Weights:
    """Reads weights from an exported file, the folder of a checkpoint, or a state folder (its newest checkpoint).

    Raises ConfigError (nothing there), CheckpointDamaged, CheckpointIncompatible, Unavailable.
    """
    source = Path(source)
    if source.is_file():
        return _of_file(source)
    if (source / MANIFEST).is_file():
        return of_checkpoint(source)
    if manifest.seqs(source / CHECKPOINTS):
        return of_newest(source / CHECKPOINTS)
    raise ConfigError(
        f"there is no checkpoint in {source}" if source.is_dir() else f"there are no weights at {source}",
        hint="name a file that `ffstream export` wrote, the folder of a checkpoint, or a state folder",
    )


def of_newest(checkpoints: Path) -> Weights:
    """The EMA weights in the newest checkpoint of that folder, also while a daemon replaces it.

    Raises what `of_checkpoint` raises, ConfigError if there is no checkpoint, Unavailable if each one was replaced.
    """
    for _ in range(_ATTEMPTS):
        seqs = manifest.seqs(checkpoints)
        if not seqs:
            raise ConfigError(
                f"there is no checkpoint in {checkpoints} yet",
                hint="`ffstream checkpoint` makes a running daemon write one",
            )
        try:
            return of_checkpoint(manifest.folder_of(checkpoints, seqs[-1]))
        except CheckpointDamaged:
            if seqs[-1] in manifest.seqs(checkpoints):
                raise
    raise Unavailable(f"{checkpoints} changed in each of {_ATTEMPTS} attempts", hint="try again")


def of_checkpoint(here: Path) -> Weights:
    """The EMA weights in the checkpoint of that folder; of replicas, their mean. Every byte of it is verified.

    Raises CheckpointDamaged, CheckpointIncompatible.
    """
    found = manifest.verify_at(here)
    seq = found["seq"]
    recipe = _recipe(found["recipe"], f"checkpoint {seq}")
    network = Network(recipe)
    weights = []
    try:
        with safe_open(here / STATE, framework="pt") as file:
            keys = [key for key in file.keys() if not key.startswith(_REPLAY)]  # noqa: SIM118 - it is not a dict
            tensors = {key: file.get_tensor(key) for key in keys}
        for own in (tensors, *(own for _, own in further_replicas(tensors))):
            network.load_state_dict(own)
            weights.append(network.weights())
    except (OSError, SafetensorError) as error:
        raise manifest.damaged(seq, f"cannot be read: {error}") from error
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointIncompatible(f"checkpoint {seq} does not hold the state of its network: {error}") from error
    return Weights(recipe, {name: tensor.float() for name, tensor in averaged(weights).items()}, seq)


def _of_file(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}", hint="check that this user may read it") from error
    except SafetensorError as error:
        raise _damaged(path, f"not a safetensors file, or damaged ({error})") from error
    if metadata.get("format") != _KIND:
        raise ConfigError(f"{path} was not written by `ffstream export`", hint="export the weights of a checkpoint")
    try:
        version = formats.expect_format(int(metadata["version"]), str(path))
        seq, recipe = int(metadata["seq"]), formats.complete(json.loads(metadata["recipe"]), version)
        expected = metadata["checksum"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"invalid metadata: {error!r}") from error
    if _checksum(metadata["recipe"], seq, tensors) != expected:
        raise _damaged(path, "wrong checksum")
    return Weights(_recipe(recipe, str(path)), tensors, seq)


def _recipe(stored: dict[str, Any], what: str) -> Recipe:
    try:
        return stored_recipe(stored)
    except OptionError as error:
        raise CheckpointIncompatible(f"{what}: the recipe cannot be used: {error}", hint=error.hint) from error


def _damaged(path: Path, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"{path}: {what}", hint="export the weights again")


def _checksum(recipe: str, seq: int, tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_128(f"{recipe}\n{seq}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _recipe_json(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True)


def export(weights: Weights, path: Path | str, *, overwrite: bool = False) -> int:
    """Writes an exported file. Returns its size in bytes.

    Raises ConfigError if the file exists (unless `overwrite`) or its folder does not, Unavailable if the disk is
    full.
    """
    path = Path(path)
    folder = path.absolute().parent
    if path.is_dir() or not path.name:
        raise ConfigError(f"{path} is a folder", hint="name a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists", hint="name another file, or overwrite it with --force")
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", hint="create it, or name a file in another folder")
    recipe = weights.recipe
    metadata = {
        "format": _KIND,
        "version": str(formats.FORMAT),
        "ffstream": __version__,
        "seq": str(weights.seq),
        "image_shape": json.dumps(recipe.image_shape),
        "labels": str(recipe.labels),
        "recipe": _recipe_json(recipe),
        "checksum": weights.checksum(),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as aside:
            part = Path(aside) / path.name
            size = save(weights.tensors, part, metadata=metadata).bytes
            fsync(part)
            part.replace(path)
        fsync_entry(path)
    except OSError as error:
        raise Unavailable(
            f"{error.filename or path}: {error.strerror}",
            hint="check free disk space and that this user may write here",
        ) from error
    return size
