"""SIGKILL of processes of a Ray cluster on a small scale; `tools/crash --engine ray` does the same for longer."""

import tempfile
from pathlib import Path

import pytest

from tests.harness.crashing.audit import Audit
from tests.harness.crashing.cluster_killing import ClusterKillRun
from tests.harness.crashing.fork_server import ForkServer
from tests.harness.crashing.observing import Outage, longest_gap
from tests.harness.crashing.stream import Stream


@pytest.mark.timeout(900)
def test_an_actor_a_raylet_and_the_daemon_are_killed_and_each_sample_is_learned_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    victims = ("actor", "raylet", "daemon")
    # The name is part of the addresses of Ray's sockets, so that of `tmp_path` is too long.
    with (
        tempfile.TemporaryDirectory(prefix="ffc-") as temporary,
        ForkServer(environment={"TMPDIR": temporary}) as forks,
    ):
        killed = ClusterKillRun(tmp_path, Path(temporary), Stream(1), forks, victims).run(3, lambda victim: None)

    assert killed.audit == Audit(acked=killed.audit.acked, lost=0, twice=0, in_order=True)
    assert killed.different == []
    assert killed.by_victim == dict.fromkeys(victims, 1)
    assert set(killed.recovery()) == {*victims}, "learning went on by itself after each kill"
    assert killed.without_acks == []
    assert killed.predictions > 10
    assert killed.unanswered == []
    assert killed.left == [], "processes and files that are still there"


def test_the_longest_gap_leaves_out_times_without_a_daemon() -> None:
    answered = [1.0, 2.0, 5.0, 6.5]
    assert longest_gap(answered, []) == 3.0
    assert longest_gap(answered, [Outage(3.0, 4.0)]) == 1.5
    assert longest_gap(answered, [Outage(1.5, 5.5)]) == 0.0
    assert longest_gap([], []) == 0.0
