"""Exported weights are read as they were written, or an error says why not."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ffstream import __version__
from ffstream.checkpoint import formats, weights
from ffstream.checkpoint.replicas import of_replica
from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.checkpoint.weights import Weights, export, load, of_network
from ffstream.errors import CheckpointDamaged, CheckpointIncompatible, ConfigError, FFStreamError, Unavailable
from ffstream.ff.merging import averaged
from ffstream.ff.network import Network
from tests.battery import assert_equal
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, SMALL, learn

TINY = SMALL.change(widths=[3])


def trained(recipe: Any = SMALL) -> Network:
    network = Network(recipe)
    learn(network, 1, 5)
    return network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    export(of_network(trained(), seq=35), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def checkpoint_of(network: Network, folder: Path, seq: int) -> Path:
    """A checkpoint with a replay buffer, as a daemon writes it."""
    store = CheckpointStore(folder, keep=3, recipe=network.recipe.model_dump(mode="json"))
    replay = {"replay.images": torch.zeros(5, 16, dtype=torch.uint8), "replay.labels": torch.zeros(5)}
    store.write(Checkpoint(seq, network.state_dict() | replay, {"step": 5}))
    return folder / f"{seq:020d}"


RECIPES = {"label-free": SMALL, "label-conditioned": CONDITIONED, "without EMA": SMALL.change(ema_samples=0.0)}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_network_is_rebuilt_from_a_file_alone(tmp_path: Path, recipe: Any) -> None:
    network = trained(recipe)
    size = export(of_network(network, seq=35), tmp_path / "x.safetensors")
    assert size == (tmp_path / "x.safetensors").stat().st_size
    found = load(tmp_path / "x.safetensors")
    assert (found.recipe, found.seq) == (recipe, 35)
    assert_equal(found.tensors, network.weights())
    assert_equal(found.network().weights(), network.weights())
    images_BI = formulas.random_images(9, 16)
    want = network.classifier().predict(images_BI).goodness_BL
    assert torch.equal(found.network().classifier().predict(images_BI).goodness_BL, want)


def test_any_safetensors_reader_understands_the_file(file: Path) -> None:
    assert_equal(load_file(file), trained().weights())
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata.pop("recipe")) == SMALL.model_dump(mode="json")
    assert len(metadata.pop("checksum")) == 32
    assert metadata == {
        "format": "ffstream-weights",
        "version": str(formats.FORMAT),
        "ffstream": __version__,
        "seq": "35",
        "image_shape": "[4, 4]",
        "labels": "4",
    }


@pytest.mark.parametrize("which", ["checkpoint", "renamed checkpoint", "state folder"])
def test_a_checkpoint_holds_the_same_weights(tmp_path: Path, which: str) -> None:
    network = trained()
    checkpoint_of(Network(SMALL), tmp_path / "state" / "checkpoints", 7)
    here = checkpoint_of(network, tmp_path / "state" / "checkpoints", 35)
    if which == "renamed checkpoint":
        here = here.rename(tmp_path / "copy")
    found = load(tmp_path / "state" if which == "state folder" else here)
    assert found.seq == 35
    assert_equal(found.tensors, network.weights())
    assert found.checksum() == of_network(network, 35).checksum()


def test_of_replicas_the_mean_is_read(tmp_path: Path) -> None:
    """It is what their daemon predicts with."""
    networks = [trained(), Network(SMALL), trained(SMALL.change(seed=3))]
    state: dict[str, torch.Tensor] = {}
    for number, network in enumerate(networks):
        state |= of_replica(number, network.state_dict())
    store = CheckpointStore(tmp_path, keep=3, recipe=SMALL.model_dump(mode="json"))
    store.write(Checkpoint(35, state | {"merger.layers.0.last": torch.zeros(3)}, {"step": 5}))
    found = load(tmp_path / f"{35:020d}")
    assert_equal(found.tensors, averaged([network.weights() for network in networks]))


def test_a_network_with_loaded_weights_is_otherwise_new() -> None:
    """Its optimiser, its schedule and its EMA start over. Only the weights are loaded."""
    old = trained(SMALL.change(preprocessing="none"))
    network = Weights(old.recipe, old.weights()).network()
    fresh = Network(old.recipe)
    for name, value in network.state_dict().items():
        if not name.endswith((".parameters", ".ema")):
            assert torch.equal(value, fresh.state_dict()[name]), name
    assert_equal(network.weights(), old.weights())
    used = trained(SMALL.change(preprocessing="none"))
    used.load_weights(old.weights())
    learn(used, 6, 9)
    learn(network, 6, 9)
    assert_equal(used.state_dict(), network.state_dict())


def test_the_mean_of_the_images_predicts_until_the_first_microbatch() -> None:
    old = trained()
    network = Weights(old.recipe, old.weights()).network()
    assert torch.equal(network.weights()["input.mean"], old.weights()["input.mean"])
    images_BI = formulas.random_images(7, 16, seed=50)
    network.learn(images_BI, formulas.random_labels(7, 4), 0)
    assert torch.allclose(network.weights()["input.mean"], images_BI.float().mean(0) / 255, atol=1e-6)


def test_weights_of_another_network_are_rejected_by_the_name_of_the_tensor() -> None:
    network, found = Network(SMALL), trained().weights()
    with pytest.raises(ValueError, match=r"the tensor layers\.1\.bias has the shape \(9,\), but this network needs"):
        network.load_weights(found | {"layers.1.bias": torch.zeros(9)})
    with pytest.raises(ValueError, match=r"the tensor layers\.2\.bias does not belong to this network"):
        network.load_weights(found | {"layers.2.bias": torch.zeros(9)})
    del found["input.mean"]
    with pytest.raises(ValueError, match=r"the tensor input\.mean is missing"):
        network.load_weights(found)
    with pytest.raises(CheckpointIncompatible, match="do not fit their recipe"):
        Weights(SMALL, found).network()


# --- damage and other files -----------------------------------------------------------------------------------------


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    export(of_network(trained(TINY), seq=35), path)
    good = path.read_bytes()
    want = load(path)
    for at in range(len(good)):
        spoiled = bytearray(good)
        spoiled[at] ^= 1 << at % 7
        path.write_bytes(spoiled)
        try:
            found = load(path)
        except FFStreamError:
            continue
        # The checksum does not cover metadata that only describes the file, such as `labels`, which is also in the
        # recipe.
        assert (found.recipe, found.seq) == (want.recipe, want.seq), f"byte {at}"
        assert_equal(found.tensors, want.tensors)


def edit_metadata(path: Path, **changes: str) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"version": str(formats.FORMAT + 1)},
            CheckpointIncompatible,
            f"has format {formats.FORMAT + 1}, and this ffstream reads formats up to {formats.FORMAT}",
        ),
        ({"version": "x"}, CheckpointDamaged, "invalid metadata"),
        ({"version": "0"}, CheckpointDamaged, "format is 0"),
        ({"seq": ""}, CheckpointDamaged, "invalid metadata"),
        ({"recipe": "{}"}, CheckpointDamaged, "wrong checksum"),
        ({"recipe": "[" * 10_000}, CheckpointDamaged, "invalid metadata"),
        ({"checksum": "0"}, CheckpointDamaged, "wrong checksum"),
        ({"format": "other"}, ConfigError, "was not written by `ffstream export`"),
    ],
    ids=str,
)
def test_invalid_metadata_is_an_error_that_names_the_file(
    file: Path, changes: dict[str, str], error: type[FFStreamError], said: str
) -> None:
    edit_metadata(file, **changes)
    with pytest.raises(error) as caught:
        load(file)
    assert said in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.hint


def test_other_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="was not written by `ffstream export`"):
        load(path)
    for content in (b"", b"hello" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointDamaged, match="not a safetensors file, or damaged"):
            load(path)
    with pytest.raises(ConfigError, match="there are no weights at"):
        load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="there is no checkpoint in"):
        load(tmp_path)


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    here = checkpoint_of(trained(), tmp_path / "checkpoints", 35)
    content = bytearray((here / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (here / "state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointDamaged, match=r"checkpoint 35: state\.safetensors: wrong checksum"):
        load(here)


def test_the_newest_checkpoint_may_be_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, read = tmp_path / "checkpoints", weights.of_checkpoint
    old = checkpoint_of(trained(), checkpoints, 5)

    def replaced_first(here: Path) -> Weights:
        if here == old:
            checkpoint_of(trained(), checkpoints, 6)
            shutil.rmtree(old)
        return read(here)

    monkeypatch.setattr(weights, "of_checkpoint", replaced_first)
    assert load(tmp_path).seq == 6


def test_a_recipe_with_parts_that_are_not_imported_says_which(file: Path) -> None:
    """Reading weights runs no code, so it imports no module that the file names."""
    stored = SMALL.model_dump(mode="json") | {"parts": ["my_parts"]}
    stored["layers"][1]["goodness"] = {"kind": "cubes"}
    text = json.dumps(stored)
    edit_metadata(file, recipe=text, checksum=weights._checksum(text, 35, load(file).tensors))
    with pytest.raises(CheckpointIncompatible, match=r'layers\[1\]\.goodness\.kind = "cubes"') as caught:
        load(file)
    assert caught.value.hint == 'import its parts before: ["my_parts"]'


# --- writing --------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_only_on_request(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="exists") as caught:
        export(of_network(Network(SMALL)), file)
    assert "--force" in caught.value.hint
    assert file.read_bytes() == before
    export(of_network(Network(SMALL), seq=3), file, overwrite=True)
    assert load(file).seq == 3
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_an_invalid_target_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        export(of_network(Network(SMALL)), tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        export(of_network(Network(SMALL)), tmp_path / "none" / "x.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(weights, "fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        export(of_network(Network(SMALL)), file, overwrite=True)
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]
