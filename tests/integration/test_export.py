"""`ffstream export`, while a daemon runs and after it has ended."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ffstream.checkpoint import weights
from ffstream.cli import main
from ffstream.client import Predictor, Producer
from tests.harness.commands import COMMAND_S, run_json
from tests.harness.daemon import Daemons
from tests.support import folder_contents

SETTINGS = (
    "network.image_shape=[4,4]",
    "network.labels=4",
    "network.widths=[8]",
    "network.batch_size=8",
    "network.warmup_samples=0",
    "learning.partial=wait",
    "pipeline.precision=fp32",
    "checkpoint.every_s=0",
    "checkpoint.every_samples=64",
)
IMAGES = np.random.default_rng(0).integers(0, 256, (128, 4, 4), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 4, 128)


def export(*arguments: str) -> Result:
    """Runs the command in this process, which has imported torch."""
    return CliRunner().invoke(main, ["export", *arguments])


@pytest.mark.timeout(600)
def test_exported_weights_predict_what_the_daemon_predicts(daemons: Daemons, tmp_path: Path) -> None:
    daemon = daemons.start(*SETTINGS)
    state = str(daemon.state)
    none = export("--state", state, "--out", str(tmp_path / "none.safetensors"))
    assert none.exit_code == 2
    assert "there is no checkpoint in" in none.stderr
    assert not (tmp_path / "none.safetensors").exists()
    with Producer(daemon.learn, client="one", connect_timeout_s=COMMAND_S) as producer:
        for at in (0, 64):  # a checkpoint that waits to be written gives way to a later one
            producer.send(IMAGES[at : at + 64], LABELS[at : at + 64])
            producer.flush()
            assert daemon.status(idle=True)["learned"] == at + 64
            assert run_json("checkpoint", "--at", daemon.control)["seq"] == at + 64

    file = tmp_path / "w.safetensors"
    made = run_json("export", "--state", state, "--out", str(file))
    assert made == {
        "path": str(file),
        "seq": 128,
        "bytes": file.stat().st_size,
        "image_shape": [4, 4],
        "labels": 4,
    }
    with Predictor(daemon.predict) as predictor:
        answer = predictor.predict(IMAGES, COMMAND_S)
    found = weights.load(file).network().classifier().predict(torch.from_numpy(IMAGES).flatten(1))
    assert np.array_equal(answer.labels, found.labels_B.numpy())
    assert daemon.terminate() == 0

    before = folder_contents(daemon.state)
    again = export("--state", state, "--out", str(file))
    assert (again.exit_code, "exists" in again.stderr, "--force" in again.stderr) == (2, True, True)
    older = export("--state", state, "--seq", "64", "--out", str(file), "--force", "--json")
    assert json.loads(older.stdout)["seq"] == 64
    assert weights.load(file).seq == 64
    missing = export("--state", state, "--seq", "63", "--out", str(tmp_path / "x"))
    assert missing.exit_code == 2
    assert "hint: there are 128, 64" in missing.stderr
    newest = daemon.state / "checkpoints" / f"{128:020d}" / "state.safetensors"
    assert folder_contents(daemon.state) == before, "nothing in the state folder has changed"

    os.truncate(newest, 100)
    damaged = export("--state", state, "--out", str(file), "--force")
    assert damaged.exit_code == 1
    assert "checkpoint 128: state.safetensors: 100 bytes" in damaged.stderr
    assert "hint: export an older checkpoint with --seq 64" in damaged.stderr
    assert weights.load(file).seq == 64, "the file that was there has not changed"
    assert json.loads((newest.parent / "manifest.json").read_text())["seq"] == 128
