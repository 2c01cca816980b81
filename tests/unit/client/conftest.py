from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ffstream.client import Control, Predictor, Producer
from tests.unit.client.scripted import Scripted


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Creates scripted daemons."""
    made: list[Scripted] = []

    def make(*arguments: Any, **options: Any) -> Scripted:
        made.append(Scripted(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Producer]]:
    """Makes producers with the name `me`, unless the options say otherwise."""
    made: list[Producer | Predictor | Control] = []

    def make(daemon: Scripted, **options: Any) -> Producer:
        made.append(producer := Producer(daemon.endpoint, **({"client": "me"} | options)))
        return producer

    yield make
    for each in made:
        each.close()
