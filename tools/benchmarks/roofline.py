"""The rate of the machine's own products with the shapes of a network: what learning could reach at most.

Shapes: B samples, I inputs, O outputs, P places, K numbers in a window.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ffstream.ff.connection import Conv, Dense, Local, Shape, channels_of, size_of
from ffstream.ff.recipe import Recipe

Products = Callable[[], None]  # one layer's forward product and the one for the gradient of its weights


def rate(recipe: Recipe, batch: int, dtype: torch.dtype, threads: int, seconds: float) -> float:
    """FLOP/s on `threads` threads at once, each of which repeats the products of all layers.

    Raises ValueError for a kind of connection whose products are not known.
    """
    layers = list(zip(recipe.layers, recipe.input_shapes(), strict=True))
    own = [[_products(layer.connection, shape, batch, dtype) for layer, shape in layers] for _ in range(threads)]
    done = [0.0] * threads
    start_line = threading.Barrier(threads + 1)
    stop = threading.Event()

    def work(which: int) -> None:
        torch.set_num_threads(1)
        start_line.wait()
        while not stop.is_set():
            for each in own[which]:
                each()
            done[which] += flops(recipe) * batch

    workers = [threading.Thread(target=work, args=(which,)) for which in range(threads)]
    for worker in workers:
        worker.start()
    start_line.wait()
    start = time.perf_counter()
    try:
        stop.wait(seconds)
    finally:
        stop.set()  # also when a signal ends the command: otherwise these threads would keep the process alive
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - start)


def flops(recipe: Recipe) -> float:
    """Floating-point operations for each sample: two products in every layer, of two operations each."""
    layers = zip(recipe.layers, recipe.input_shapes(), strict=True)
    return 4.0 * sum(_units(layer.connection, shape) * layer.connection.fan_in(shape) for layer, shape in layers)


def _units(connection: Any, shape: Shape) -> int:
    """The number of units before pooling."""
    if isinstance(connection, Conv | Local):
        return math.prod(connection.places(shape)) * connection.channels
    return size_of(connection.output_shape(shape))


def _products(connection: Any, shape: Shape, batch: int, dtype: torch.dtype) -> Products:
    if isinstance(connection, Conv):
        return _conv(connection, shape, batch, dtype)
    if isinstance(connection, Local):
        return _local(connection, shape, batch, dtype)
    if isinstance(connection, Dense):
        return _dense(connection, shape, batch, dtype)
    raise ValueError(f"no products are known for the connection {connection.kind}")


def _dense(connection: Dense, shape: Shape, batch: int, dtype: torch.dtype) -> Products:
    x_BI = torch.randn(batch, size_of(shape)).to(dtype)
    weight_OI = torch.randn(connection.units, size_of(shape)).to(dtype)
    e_BO = torch.randn(batch, connection.units).to(dtype)
    z_BO, gradient_OI = torch.empty_like(e_BO), torch.empty_like(weight_OI)

    def products() -> None:
        torch.mm(x_BI, weight_OI.t(), out=z_BO)
        torch.mm(e_BO.t(), x_BI, out=gradient_OI)

    return products


def _conv(connection: Conv, shape: Shape, batch: int, dtype: torch.dtype) -> Products:
    def maps(*size: int) -> Tensor:
        return torch.randn(size).to(dtype, memory_format=torch.channels_last)

    x = maps(batch, channels_of(shape), *shape[:2])
    weight = maps(connection.channels, channels_of(shape), connection.kernel, connection.kernel)
    e = maps(batch, connection.channels, *connection.places(shape))
    stride, padding = [connection.stride] * 2, [connection.padding] * 2
    only_weight = [False, True, False]

    def products() -> None:
        torch.conv2d(x, weight, None, stride, padding)
        torch.ops.aten.convolution_backward(
            e, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, only_weight
        )

    return products


def _local(connection: Local, shape: Shape, batch: int, dtype: torch.dtype) -> Products:
    places, window = math.prod(connection.places(shape)), connection.fan_in(shape)
    windows_PBK = torch.randn(places, batch, window).to(dtype)
    weight_POK = torch.randn(places, connection.channels, window).to(dtype)
    e_PBO = torch.randn(places, batch, connection.channels).to(dtype)
    z_PBO, gradient_POK = torch.empty_like(e_PBO), torch.empty_like(weight_POK)

    def products() -> None:
        torch.bmm(windows_PBK, weight_POK.transpose(1, 2), out=z_PBO)
        torch.bmm(e_PBO.transpose(1, 2), windows_PBK, out=gradient_POK)

    return products
