"""A client belongs to one thread of one process. Others get an error; libzmq would abort the process."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ffstream.client import Control, Predictor, Producer
from ffstream.errors import FFStreamError, WrongThread
from tests.unit.client.scripted import Scripted

IMAGE = np.zeros((1, 6), np.uint8)
Script = Callable[..., Scripted]


def answer(daemon: Scripted, fields: dict[str, Any]) -> None:
    if fields["type"] == "samples":
        daemon.ack(fields["n"])
    elif fields["type"] == "predict":
        daemon.say("prediction", bytes(8), id=fields["id"], labels=[1], version=1, seq=1)
    else:
        daemon.say("reply", id=fields["id"], result={})


def _produce(client: Any) -> None:
    client.send(IMAGE, [1])
    client.flush(10)


CLIENTS: dict[str, tuple[type[Any], Callable[[Any], object]]] = {
    "learn": (Producer, _produce),
    "predict": (Predictor, lambda client: client.predict(IMAGE)),
    "control": (Control, lambda client: client.status()),
}


@pytest.fixture(params=CLIENTS)
def made(request: pytest.FixtureRequest, scripted: Script) -> tuple[Any, Callable[[Any], object]]:
    """An unused client, and a function that uses it."""
    kind, use = CLIENTS[request.param]
    return kind(scripted(answer, socket=request.param).endpoint), use


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A single thread that keeps running."""
    with ThreadPoolExecutor(1, thread_name_prefix="other") as pool:
        yield pool


def test_a_second_thread_is_rejected(made: tuple[Any, Callable[[Any], object]], thread: ThreadPoolExecutor) -> None:
    client, use = made
    use(client)
    for attempt in (use, lambda client: client.close()):
        with pytest.raises(WrongThread, match="belongs to thread 'MainThread'") as caught:
            thread.submit(attempt, client).result(20)
        assert "for each thread" in caught.value.hint
    use(client)
    client.close()


def test_every_method_of_a_producer_checks_the_thread(scripted: Script, thread: ThreadPoolExecutor) -> None:
    producer = Producer(scripted(answer).endpoint)
    producer.poll()
    for call in (lambda: producer.send(IMAGE, [1]), producer.flush, producer.poll, producer.close):
        with pytest.raises(WrongThread):
            thread.submit(call).result(20)
    producer.close()


def test_a_client_may_be_created_in_one_thread_and_used_in_another(
    made: tuple[Any, Callable[[Any], object]], thread: ThreadPoolExecutor
) -> None:
    client, use = made
    thread.submit(use, client).result(20)
    with pytest.raises(WrongThread):
        use(client)
    thread.submit(client.close).result(20)


def test_a_client_can_be_used_by_another_thread_when_its_own_has_ended(
    made: tuple[Any, Callable[[Any], object]],
) -> None:
    client, use = made
    with client:
        first = threading.Thread(target=use, args=(client,))
        first.start()
        first.join(20)
        use(client)


def test_a_forked_process_is_rejected(made: tuple[Any, Callable[[Any], object]]) -> None:
    client, use = made
    use(client)
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        for attempt in (use, lambda client: client.close()):
            try:
                attempt(client)
                os.write(writable, b"nothing was raised\n")
            except FFStreamError as error:
                os.write(writable, f"{error}\n".encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as reader:
        lines = reader.read().splitlines()
    os.waitpid(child, 0)
    assert len(lines) == 2
    assert all("cannot be used after a fork [wrong_thread]" in line for line in lines)
    use(client)
    client.close()
