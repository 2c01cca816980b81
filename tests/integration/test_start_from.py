"""`ffstream serve --from`, as a service manager runs it: killed, and started again with the same command line."""

from pathlib import Path

import numpy as np
import pytest

from ffstream.checkpoint import weights
from ffstream.client import Producer
from tests.battery import assert_equal
from tests.harness.commands import COMMAND_S, run_cli, run_json
from tests.harness.daemon import DaemonProcess, Daemons
from tests.integration.test_export import IMAGES, LABELS, SETTINGS


def send(daemon: DaemonProcess, first: int, last: int) -> None:
    with Producer(daemon.learn, client="one", connect_timeout_s=COMMAND_S) as producer:
        for at in range(first, last, 16):
            producer.send(IMAGES[at : at + 16], LABELS[at : at + 16])
    assert daemon.status(idle=True)["applied_seq"] == last


@pytest.mark.timeout(600)
def test_a_stream_from_weights_that_is_killed_equals_one_that_is_not(daemons: Daemons, tmp_path: Path) -> None:
    first = daemons.start(*SETTINGS, name="first")
    send(first, 0, 128)
    assert first.terminate() == 0
    source = tmp_path / "w.safetensors"
    run_json("export", "--state", str(first.state), "--out", str(source))

    whole = daemons.start(*SETTINGS, name="whole", start_from=source)
    send(whole, 0, 128)
    assert whole.terminate() == 0

    killed = daemons.start(*SETTINGS, name="killed", start_from=source)
    killed.kill()
    killed = daemons.start(*SETTINGS, name="killed", start_from=source)
    send(killed, 0, 80)
    killed.kill()
    source.rename(tmp_path / "moved")
    killed = daemons.start(*SETTINGS, name="killed", start_from=source)
    assert "state exists, --from is not used" in killed.log_text()
    assert killed.status(idle=True)["applied_seq"] == 80
    send(killed, 80, 128)
    assert killed.terminate() == 0

    found = weights.load(killed.state)
    assert found.seq == 128
    assert_equal(found.tensors, weights.load(whole.state).tensors)
    scratch = weights.load(first.state).tensors
    assert not np.array_equal(found.tensors["layers.0.weight"].numpy(), scratch["layers.0.weight"].numpy())

    refused = run_cli("serve", "--state", str(first.state), "--from", str(tmp_path / "moved"), *settings())
    assert refused.returncode == 2
    assert "did not begin from weights" in refused.stderr
    backup = tmp_path / "backup"
    run_json("backup", str(backup), "--state", str(killed.state))
    backup.rename(killed.state.with_name("restored"))
    restored = daemons.start(*SETTINGS, name="restored", start_from=source)
    assert restored.status()["applied_seq"] == 128
    assert restored.terminate() == 0


def settings() -> list[str]:
    return [part for each in SETTINGS for part in ("--set", each)]
