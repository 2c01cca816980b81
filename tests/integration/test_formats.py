"""The formats on disk. What earlier versions wrote is still read, and a change of a format needs a new version.

`tests/fixtures/generate.py` says what the folders `format-N` hold. If `test_this_code_writes_the_newest_format`
fails, the code writes something else than what shipped: increase the version of that format (`schema.VERSION`,
`formats.FORMAT` or `backup.FORMAT`), generate the next folder, and keep the old ones as long as they can be read.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ffstream.checkpoint import weights
from ffstream.client import Predictor
from ffstream.daemon import backup
from ffstream.errors import Paused
from ffstream.journal import inspection
from ffstream.journal.clients import Receipt
from ffstream.journal.verification import Verification
from tests.battery import assert_equal
from tests.fixtures import generate
from tests.fixtures.generate import ACKED, DEADLINE_S, LEARNED, SKIPPED

FOLDERS = sorted(Path(generate.__file__).parent.glob("format-*"), key=lambda each: int(each.name.partition("-")[2]))


@pytest.fixture(params=FOLDERS, ids=[each.name for each in FOLDERS])
def shipped(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a folder that an earlier version wrote, or this one."""
    folder = tmp_path / "shipped"
    shutil.copytree(request.param, folder)
    (folder / "state").chmod(0o700)
    return folder


def test_a_daemon_recovers_learns_and_exports(shipped: Path, tmp_path: Path) -> None:
    state = shipped / "state"
    config = generate.config(state)
    with generate.serving(config) as daemon:
        status = daemon.reports.status()
        assert (status["accepted"], status["learned"], status["applied_seq"]) == (ACKED, LEARNED, SKIPPED)
        assert status["skipped"] == SKIPPED - LEARNED
        with Predictor(daemon.predict.endpoint) as predictor:
            images = torch.arange(160, dtype=torch.uint8).view(10, 16)
            want = weights.load(shipped / "weights.safetensors").network().classifier().predict(images)
            assert predictor.predict(images.numpy(), DEADLINE_S).labels.tolist() == want.labels_B.tolist()
        with pytest.raises(Paused):
            daemon.learner.wait_idle(DEADLINE_S)
        generate.send(daemon, 0, ACKED)
        daemon.learner.pause(False)
        daemon.learner.wait_idle(DEADLINE_S)
        assert daemon.learner.applied_seq == 2 * ACKED
        assert daemon.learner.checkpoint(DEADLINE_S).seq == 2 * ACKED
    with generate.serving(config) as daemon:
        assert daemon.reports.status()["learned"] == 2 * ACKED - (SKIPPED - LEARNED)
    made = backup.make(state, tmp_path / "backup")
    assert made.checkpoint_seq == 2 * ACKED
    weights.export(weights.load(state), tmp_path / "new.safetensors")
    assert weights.load(tmp_path / "new.safetensors").seq == 2 * ACKED


def test_a_message_that_was_stored_is_not_stored_again(shipped: Path) -> None:
    """The receipt of a deleted row is understood as well as the rows that are left."""
    with generate.serving(generate.config(shipped / "state")) as daemon:
        clients = daemon.journal.clients
        assert clients.receipt(generate.OTHER, 1) == Receipt(1, 1, 8)
        last = clients.next_n(generate.CLIENT) - 1
        assert clients.receipt(generate.CLIENT, last) == Receipt(last, ACKED - 7, 8)
        generate.send_one(daemon)
        assert daemon.journal.head.seq == ACKED


def test_a_stream_can_begin_from_the_weights(shipped: Path, tmp_path: Path) -> None:
    source = shipped / "weights.safetensors"
    assert_equal(weights.load(source).tensors, weights.load(shipped / "state").tensors)
    with generate.serving(generate.config(tmp_path / "new"), source) as daemon:
        assert daemon.reports.status()["checkpoint_seq"] == 0


def test_its_journal_is_whole(shipped: Path) -> None:
    with inspection.opened(shipped / "state" / "journal.sqlite") as connection:
        verification = Verification(connection)
        verification.run()
    assert verification.findings.named == []
    assert verification.samples == ACKED - LEARNED


# --- what is written ------------------------------------------------------------------------------------------------


def schema_of(journal: Path) -> dict[str, str]:
    """The SQL of each table and index, and the names in the table meta."""
    with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        found = dict(connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_master"))
        meta = connection.execute("SELECT key, typeof(value) FROM meta").fetchall()
        version = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()[0]
    return found | {f"meta {key}": kind for key, kind in meta} | {"version": str(version)}


def kinds(tree: Any) -> Any:
    """A JSON value with its numbers and texts replaced by their types."""
    if isinstance(tree, dict):
        return {key: kinds(value) for key, value in tree.items()}
    return [kinds(each) for each in tree] if isinstance(tree, list) else type(tree).__name__


def tensors_of(path: Path) -> dict[str, tuple[str, list[int]]]:
    """The dtype and shape of each tensor."""
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
        return {key: (str(each.get_dtype()), list(each.get_shape())) for key, each in slices.items()}


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of exported weights, without what differs from file to file."""
    with safe_open(path, framework="pt") as file:
        return {key: "" if key in ("checksum", "ffstream") else value for key, value in file.metadata().items()}


def written(folder: Path) -> dict[str, Any]:
    """Everything about the formats of what is in a folder."""
    state = folder / "state"
    (checkpoint,) = (state / "checkpoints").iterdir()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    description = json.loads((state / "backup.json").read_text())
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
        "journal": schema_of(state / "journal.sqlite"),
        "manifest": kinds(manifest) | {"format": manifest["format"], "recipe": manifest["recipe"]},
        "state": tensors_of(checkpoint / "state.safetensors"),
        "backup": kinds(description) | {"format": description["format"]},
        "weights": tensors_of(folder / "weights.safetensors"),
        "metadata": metadata_of(folder / "weights.safetensors"),
    }


def test_this_code_writes_the_newest_format(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    new, shipped = written(tmp_path), written(FOLDERS[-1])
    for part, content in shipped.items():
        assert new[part] == content, f"{part}: see the module's docstring"
