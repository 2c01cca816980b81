"""Backups are complete while a producer sends, the daemon trims its journal, and it is killed at the end."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ffstream.checkpoint import manifest
from tests.harness.commands import COMMAND_S, run_cli, run_json
from tests.harness.crashing.audit import journal_rows
from tests.harness.crashing.stream import CHECKPOINT_SAMPLES, DENSE, SETTINGS, Sender, Stream
from tests.harness.daemon import Daemons
from tests.support import wait_until

RATE = 300.0  # messages a second


def wait_for_acks(sender: Sender, last_seq: int) -> None:
    wait_until(
        lambda: bool(sender.acks) and sender.acks[-1].first_seq > last_seq + 3 * CHECKPOINT_SAMPLES,
        2 * COMMAND_S,
        "the samples of three checkpoints are acked",
    )


def first_seq_of(state: Path) -> int:
    seq: int = run_json("journal", "stat", "--state", str(state))["first_seq"]
    return seq


@pytest.mark.timeout(600)
def test_a_backup_contains_every_sample_acked_before_it_began(daemons: Daemons, tmp_path: Path) -> None:
    daemon = daemons.start(*SETTINGS, *DENSE, "checkpoint.keep=1")
    sender = Sender(daemon.learn, Stream(1), RATE)
    acked: list[int] = []
    for number in range(2):
        wait_for_acks(sender, acked[-1] if acked else 0)
        sender.check()
        wait_until(lambda: first_seq_of(daemon.state) > 1, COMMAND_S, "the journal was trimmed")
        acked.append(max(each.last_seq for each in list(sender.acks)))
        backup = run_json("backup", str(tmp_path / f"backup-{number}"), "--state", str(daemon.state))
        assert backup["last_seq"] >= acked[-1]
        assert 1 < backup["first_seq"] <= backup["checkpoint_seq"] + 1, (
            "the trimmed journal continues from the checkpoint"
        )
    sender.finish()
    daemon.kill()
    shutil.rmtree(daemon.state)

    acks = set(sender.acks)
    for number, before in enumerate(acked):
        folder = tmp_path / f"backup-{number}"
        for command in ("journal", "checkpoint"):
            assert run_cli(command, "verify", "--state", str(folder)).returncode == 0
        summary = json.loads((folder / "backup.json").read_text())
        rows = journal_rows(folder / "journal.sqlite")
        assert sum(row.samples for row in rows) == summary["last_seq"] - summary["first_seq"] + 1
        assert [row for row in rows if row.first_seq <= before and row not in acks] == []
        shutil.copytree(folder, tmp_path / f"state-{number}")
        again = daemons.start(*SETTINGS, *DENSE, "learning.partial=flush", name=f"state-{number}")
        status = again.status(idle=True)
        assert status["accepted"] == status["learned"] == summary["last_seq"] >= before
        assert again.terminate() == 0


def test_a_killed_backup_leaves_no_folder_that_looks_complete(daemons: Daemons, tmp_path: Path) -> None:
    daemon = daemons.start(*SETTINGS, *DENSE)
    sender = Sender(daemon.learn, Stream(1), RATE)
    wait_until(lambda: manifest.seqs(daemon.state / "checkpoints"), 2 * COMMAND_S, "a checkpoint is there")
    sender.finish()
    code = (
        "import os, signal, ffstream.daemon.backup as backup\n"
        "from pathlib import Path\n"
        "backup._verify = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"backup.make(Path({str(daemon.state)!r}), Path({str(tmp_path / 'backup')!r}))\n"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=COMMAND_S, check=False).returncode == -9
    assert not (tmp_path / "backup").exists()
    assert run_json("backup", str(tmp_path / "backup"), "--state", str(daemon.state))["checkpoint_seq"] > 0
    assert daemon.terminate() == 0


def test_a_failed_backup_prints_an_error_and_a_hint(tmp_path: Path) -> None:
    done = run_cli("backup", str(tmp_path / "backup"), "--state", str(tmp_path / "none"))
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == f"error: no journal at {tmp_path}/none/journal.sqlite [config]"
    assert hint.startswith("hint: ")
