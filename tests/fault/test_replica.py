"""A prediction replica outlives the daemon that it follows, and takes up the daemon that comes after it."""

import numpy as np

from ffstream.client import Predictor, Producer
from ffstream.config import load
from ffstream.daemon.replica import Replica
from tests.harness.commands import COMMAND_S
from tests.harness.daemon import Daemons
from tests.harness.daemon_directory import FREE_PORTS, free_port
from tests.support import wait_until

SIZE = 64
IMAGES = np.random.default_rng(1).integers(0, 256, (SIZE, 784), dtype=np.uint8)


def teach(learn: str) -> None:
    with Producer(learn) as producer:
        for _ in range(20):
            producer.send(IMAGES, np.arange(SIZE) % 10)
        producer.flush(COMMAND_S)


def await_seq(predictor: Predictor, seq: int) -> None:
    wait_until(lambda: predictor.predict(IMAGES).seq == seq, COMMAND_S, f"the replica has learned up to {seq}")


def test_a_replica_outlives_a_killed_daemon_and_takes_up_its_restart(daemons: Daemons) -> None:
    control = f"listen.control=tcp://127.0.0.1:{free_port()}"
    daemon = daemons.start(control, "network.preset=fast")
    replica = Replica(load(settings=FREE_PORTS, environment={}), daemon.control)
    assert replica.start()
    try:
        with Predictor(replica.endpoint) as predictor:
            for _ in range(2):
                teach(daemon.learn)
                learned = daemon.status(idle=True)["applied_seq"]
                await_seq(predictor, learned)
                with Predictor(daemon.predict) as original:
                    expected = original.predict(IMAGES)
                daemon.kill()
                wait_until(lambda: "does not answer" in replica.readiness().text, COMMAND_S, "it says so")
                found = predictor.predict(IMAGES)
                assert (found.version, found.seq) == (expected.version, expected.seq)
                assert found.goodness.tobytes() == expected.goodness.tobytes()
                daemon = daemons.start(control, "network.preset=fast")
                wait_until(lambda: replica.readiness().text == "ready", COMMAND_S, "it follows the restarted daemon")
            recovered = daemon.status(idle=True)["applied_seq"]
            await_seq(predictor, recovered)
    finally:
        replica.stop()
