"""Daemons whose stages are actors of a Ray cluster, as processes that are killed one by one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from ffstream.checkpoint.store import CheckpointStore
from ffstream.client import Predictor, Producer
from ffstream.pipeline.cluster.keeper_process import KeeperProcess
from ffstream.pipeline.cluster.requests import Connect, Place, Slot
from ffstream.pipeline.cluster.sockets import Keys
from tests.harness.commands import COMMAND_S, run_json
from tests.harness.daemon import DaemonProcess, start_daemon
from tests.harness.daemon_directory import FREE_PORTS, DaemonDirectory, free_port
from tests.in_process import SMALL, config
from tests.support import wait_until
from tests.unit.pipeline.run import Serial, Stream, assert_same

DEADLINE_S = 120.0
PART = 25 * 8  # samples; whole microbatches
NETWORK = tuple(each for each in SMALL if each not in FREE_PORTS and "replay=" not in each)
NETWORK += ("network.replay=4", "checkpoint.keep=20")
RAY = ("pipeline.engine=ray", "cluster.start_timeout_s=60")
THREADS = ("pipeline.engine=threads",)
STREAM = Stream.random(16 * PART)

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
pytestmark = [pytest.mark.timeout(900)]


class Machine:
    """The processes and temporary files of the daemons of one test, which have a mark in their environment."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.mark = uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # part of the addresses of sockets

    def start(self, *settings: str) -> DaemonProcess:
        """A daemon on the state folder of this test. It serves."""
        directory = DaemonDirectory(self._root / "state", [*NETWORK, *settings])
        environment = {"FFSTREAM_TEST_MARK": self.mark, "TMPDIR": str(self.temporary)}
        daemon = start_daemon(directory, environment=environment)
        daemon.await_ready()
        return daemon

    def processes(self) -> list[psutil.Process]:
        """All that run, with those that Ray has started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FFSTREAM_TEST_MARK") == self.mark:
                    found.append(process)
        return found

    def expect_no_process(self) -> None:
        """Soon."""
        wait_until(lambda: not self.processes(), DEADLINE_S, "all processes have ended")

    def expect_nothing_left(self) -> None:
        """No process, and no file."""
        self.expect_no_process()
        left = [each.name for each in self.temporary.iterdir() if each.name.startswith("ffs-")]
        assert not left

    def end(self) -> None:
        """Kills what a failed test has left."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


class Learned:
    """Sends the stream to one daemon after the other, and says what must have been learned."""

    def __init__(self, tmp_path: Path) -> None:
        self._recipe = config(tmp_path, *NETWORK, base=FREE_PORTS).network
        self.sent = 0

    def send(self, daemon: DaemonProcess, samples: int = PART) -> None:
        """Returns when all are acked."""
        with Producer(daemon.learn, client="one", connect_timeout_s=COMMAND_S) as producer:
            for at in range(self.sent, self.sent + samples, 20):
                producer.send(STREAM.images[at : at + 20], STREAM.labels[at : at + 20])
            producer.flush(DEADLINE_S)
        self.sent += samples

    def expect_learned(self, daemon: DaemonProcess) -> None:
        """Everything is learned once and in order: a checkpoint is bit-equal to the serial reference."""
        assert daemon.status(idle=True)["snapshot"]["seq"] == self.sent
        # Everything may have been learned just before the stages were lost. Then they learn a part of it again.
        wait_learning(daemon)
        wait_until(lambda: self._checkpointed(daemon) == self.sent, DEADLINE_S, "everything is in a checkpoint")
        store = CheckpointStore(daemon.state / "checkpoints", keep=20, recipe=self._recipe.model_dump(mode="json"))
        found = store.load(store.whole_seqs()[-1])
        assert found.seq == self.sent
        sent = Stream(STREAM.images[: self.sent], STREAM.labels[: self.sent])
        assert_same(found.tensors, Serial(self._recipe, sent).states[-1])

    def _checkpointed(self, daemon: DaemonProcess) -> int:
        return int(run_json("checkpoint", "--at", daemon.control)["seq"])


@pytest.fixture
def learned(tmp_path: Path) -> Learned:
    return Learned(tmp_path)


def interrupted(daemon: DaemonProcess) -> dict[str, Any] | None:
    found: dict[str, Any] | None = daemon.status()["interrupted"]
    return found


def wait_learning(daemon: DaemonProcess) -> None:
    wait_until(lambda: interrupted(daemon) is None, DEADLINE_S, "stages are placed")


def pids(daemon: DaemonProcess) -> list[int]:
    return [stage["pid"] for stage in daemon.status()["stages"]]


def keeper(daemon: DaemonProcess) -> psutil.Process:
    children = psutil.Process(daemon.pid).children()
    (found,) = [each for each in children if "ffstream.pipeline.cluster.keeper" in each.cmdline()]
    return found


def page(daemon: DaemonProcess, path: str) -> str:
    with urllib.request.urlopen(f"{daemon.http}/{path}", timeout=COMMAND_S) as answer:
        text: str = answer.read().decode()
    return text


def metric(daemon: DaemonProcess, name: str, **labels: str) -> float:
    text = page(daemon, "metrics")
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    start = f"ffstream_{name}{{{wanted}}} " if wanted else f"ffstream_{name} "
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


def predicts(daemon: DaemonProcess) -> bool:
    with Predictor(daemon.predict, connect_timeout_s=COMMAND_S) as predictor:
        return len(predictor.predict(STREAM.images[:3], timeout_s=COMMAND_S).labels) == 3


def survives(daemon: DaemonProcess, learned: Learned, kill: Callable[[], object], named: str) -> None:
    """Samples are acked and predictions answered while stages are gone, and then everything is learned."""
    wait_learning(daemon)
    lines = daemon.log_text().count("learning is interrupted")
    seq = daemon.status()["snapshot"]["seq"]
    kill()
    learned.send(daemon)
    assert predicts(daemon)
    wait_until(lambda: daemon.log_text().count("learning is interrupted") > lines, DEADLINE_S, "the loss is logged")
    assert daemon.status()["snapshot"]["seq"] >= seq, "predictions come from what was learned before"
    learned.expect_learned(daemon)
    assert named in daemon.log_text()
    assert interrupted(daemon) is None
    assert metric(daemon, "learning_interrupted") == 0


@needs_ray
def test_a_daemon_outlives_its_actors(machine: Machine, learned: Learned) -> None:
    daemon = machine.start(*THREADS)
    learned.send(daemon)
    assert daemon.terminate() == 0

    daemon = machine.start(*RAY, "cluster.spares=1")
    assert predicts(daemon)
    learned.send(daemon)  # while stages are placed for the first time
    learned.expect_learned(daemon)

    first = pids(daemon)
    wait_until(lambda: len(actors(machine)) == 3, DEADLINE_S, "a spare actor is ready")
    spare = actors(machine) - set(first)
    survives(daemon, learned, lambda: os.kill(first[1], signal.SIGKILL), "ff-stage-1 is lost")
    second = pids(daemon)
    assert set(second) == {first[0]} | spare
    assert sum(metric(daemon, "stage_replacements_total", stage="1", reason=each) for each in REASONS) == 1

    survives(daemon, learned, lambda: os.kill(second[0], signal.SIGSTOP), "ff-stage-0 is lost")
    assert second[0] not in pids(daemon)
    wait_until(lambda: not psutil.pid_exists(second[0]), DEADLINE_S, "the stopped process is killed")

    target = learned.sent - PART
    run_json("rollback", "--to", str(target), "--at", daemon.control)
    learned.expect_learned(daemon)

    learned.send(daemon)
    assert daemon.terminate() == 0  # a last checkpoint has what was queued
    machine.expect_nothing_left()

    daemon = machine.start(*THREADS)
    learned.expect_learned(daemon)
    assert daemon.terminate() == 0


REASONS = ("actor", "connection", "stalled")


def actors(machine: Machine) -> set[int]:
    return {each.pid for each in machine.processes() if "_RayStage" in " ".join(each.cmdline())}


@needs_ray
def test_a_daemon_outlives_its_keeper_and_its_cluster(machine: Machine, learned: Learned) -> None:
    daemon = machine.start(*RAY)
    learned.send(daemon)
    learned.expect_learned(daemon)

    survives(daemon, learned, lambda: keeper(daemon).kill(), "the keeper has ended")
    (raylet,) = [each for each in keeper(daemon).children(recursive=True) if each.name() == "raylet"]
    survives(daemon, learned, raylet.kill, "is lost")

    learned.send(daemon)
    daemon.kill()
    machine.expect_no_process()  # Ray may end the keeper before it has removed its folder: the next one does
    daemon = machine.start(*THREADS)
    learned.expect_learned(daemon)
    assert daemon.terminate() == 0


@needs_ray
def test_a_daemon_without_its_cluster_acks_predicts_and_says_why_it_does_not_learn(machine: Machine) -> None:
    learned = Learned(machine.temporary)
    address = f"127.0.0.1:{free_port()}"
    daemon = machine.start("pipeline.engine=ray", f"cluster.address={address}", "cluster.start_timeout_s=5")
    learned.send(daemon)
    assert predicts(daemon)
    wait_until(lambda: (interrupted(daemon) or {}).get("tries", 0) > 1, DEADLINE_S, "it was tried again")
    found = interrupted(daemon)
    assert found is not None
    assert address in found["reason"], found
    assert found["hint"]
    assert metric(daemon, "learning_interrupted") == 1
    assert daemon.status()["applied_seq"] == 0
    assert "learning is interrupted" in page(daemon, "readyz/learn")
    assert "learning is interrupted" in daemon.log_text()
    assert daemon.terminate() == 0
    machine.expect_nothing_left()
    daemon = machine.start(*THREADS)
    learned.expect_learned(daemon)
    daemon.kill()


def test_without_ray_the_engine_is_a_configuration_error(tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'ray' else find(name, *rest)\n"
        "from ffstream.cli import main\n"
        "sys.exit(main())\n"
    )
    arguments = ["serve", "--state", str(tmp_path / "state"), "--set", "pipeline.engine=ray"]
    settings = [part for each in (*FREE_PORTS, *NETWORK) for part in ("--set", each)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, *settings],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'ffstream[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes on this machine: `one` and `two` are their resources."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {**NODE, "resources": {"one": 2}, "include_dashboard": False}
        cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster, cluster.add_node(**NODE, resources={"two": 1})
        finally:
            cluster.shutdown()


@needs_ray
def test_a_keeper_that_finds_no_room_for_spares_answers_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFSTREAM_TEST_MARK", machine.mark)
    monkeypatch.setenv("TMPDIR", str(machine.temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    lost: list[object] = []
    keeper = KeeperProcess("local", threading.Event(), lambda *loss: lost.append(loss), lost.append)
    try:
        keeper.connect(Connect("local", cpus=1, resources=(), spares=1), DEADLINE_S)
        place = Place([Slot()], "token", Keys.new().public, False, 3 * DEADLINE_S, replicas=1, stages=1)
        (first,) = keeper.place(place).spots
        start = time.monotonic()
        keeper.kill([first.number])
        (second,) = keeper.place(place).spots
        assert time.monotonic() - start < 2 * DEADLINE_S
        assert second.pid != first.pid
    finally:
        assert keeper.stop(DEADLINE_S)
    machine.expect_nothing_left()


@needs_ray
def test_a_daemon_outlives_a_node_of_its_cluster(machine: Machine, learned: Learned) -> None:
    with two_nodes() as (cluster, second):
        settings = ('cluster.resources=["one","two"]', f"cluster.address={cluster.address}")
        daemon = machine.start(*RAY, *settings)
        learned.send(daemon)
        learned.expect_learned(daemon)
        nodes = [stage["node"] for stage in daemon.status()["stages"]]
        assert len(set(nodes)) == 2
        second.kill_raylet()
        learned.send(daemon)
        assert predicts(daemon)
        wait_until(lambda: interrupted(daemon) is not None, DEADLINE_S, "the loss is noticed")
        cluster.add_node(**NODE, resources={"two": 1})
        learned.expect_learned(daemon)
        after = [stage["node"] for stage in daemon.status()["stages"]]
        assert after[0] == nodes[0]
        assert after[1] not in nodes
        assert daemon.terminate() == 0
