"""What the learning speed is compared with: other methods in the same precision, products of the same shapes."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ffstream.ff.connection import Local
from ffstream.ff.presets import recipe
from tests.support import wait_until
from tools.benchmarks import learn, roofline


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of each product of a linear layer, in order."""
    found: list[torch.dtype] = []
    forward = nn.Linear.forward

    def recorded(self: nn.Linear, x_BI: Tensor) -> Tensor:
        z_BO = forward(self, x_BI)
        found.append(z_BO.dtype)
        return z_BO

    monkeypatch.setattr(nn.Linear, "forward", recorded)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("measure", [learn.overlay_rate, learn.backprop_rate])
def test_other_methods_compute_in_the_precision_of_the_network(
    products: list[torch.dtype], measure: Any, dtype: torch.dtype
) -> None:
    threads = torch.get_num_threads()
    assert measure((16, 8), 4, dtype, threads, updates=1) > 0
    assert {*products} == {dtype}
    assert torch.get_num_threads() == threads
    assert not torch.is_autocast_enabled("cpu")


def test_products_of_an_unknown_connection_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "Dense", Local)  # so dense connections are not known
    with pytest.raises(ValueError, match="no products are known for the connection dense"):
        roofline.rate(recipe("fast", widths=[8]), 4, torch.float32, 2, 0.01)


class Interrupted(threading.Event):
    """As when a signal comes while the main thread waits."""

    def wait(self, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt


def test_an_interrupted_measurement_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    names = SimpleNamespace(Barrier=threading.Barrier, Thread=threading.Thread, Event=Interrupted)
    monkeypatch.setattr(roofline, "threading", names)
    with pytest.raises(KeyboardInterrupt):
        roofline.rate(recipe("fast", widths=[8]), 4, torch.float32, 2, 60.0)
    wait_until(lambda: set(threading.enumerate()) <= before, 30, "the threads end")
