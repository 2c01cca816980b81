"""Measures what the model needs besides rates: layers on one processor, journal, feeder, hops, merges."""

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import zmq

from ffstream.client import Control
from ffstream.ff.activities import Activities
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.pipeline.channel import Closed
from ffstream.pipeline.cluster import sockets
from ffstream.pipeline.cluster.frames import Message
from ffstream.pipeline.cluster.hops import HopIn, HopOut
from ffstream.pipeline.device import choose_product_dtype
from ffstream.pipeline.messages import Barrier, StageOutput
from tests.harness.daemon import temporary_daemon
from tools.benchmarks import ingest
from tools.benchmarks.cluster.measured import INPUTS, WIDTHS, HopCosts, LayerTime, line, recipe_of

_TOKEN = "a run"
_DEPTH = 4
_JOIN_S = 60.0


def layer_times(name: str, batch: int, repeats: int) -> Iterator[LayerTime]:
    """Each layer of a network on this thread: medians of the processor time of `repeats` microbatches.

    The input belongs to the first layer.
    """
    recipe = recipe_of(name, batch)
    network = Network(recipe, Placement(product_dtype=choose_product_dtype("auto", torch.device("cpu"))))
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (batch, INPUTS), dtype=np.uint8))
    labels = torch.from_numpy(draw.integers(0, 10, batch))
    taken: list[list[float]] = [[] for _ in network.layers]
    outputs: list[float] = [0.0 for _ in network.layers]
    for step in range(repeats + 1):
        start = time.thread_time()
        activities = network.input.forward(images, labels, step, "interleaved", None)
        for index, layer in enumerate(network.layers):
            activities = layer.forward(activities)
            layer.update()
            end = time.thread_time()
            taken[index].append(end - start)
            start = end
            outputs[index] = _bytes(activities)
    for index, (inputs, units) in enumerate(pairwise((INPUTS, *WIDTHS[name]))):
        layer = network.layers[index]
        yield LayerTime(
            inputs=inputs,
            units=units,
            batch=batch,
            seconds=statistics.median(taken[index][1:]),  # the first one compiles
            activity_bytes=outputs[index],
            state_bytes=sum(value.nbytes for value in layer.state_dict().values()),
            weight_bytes=sum(value.nbytes for value in layer.weights().values()),
        )


def _bytes(activities: Activities) -> int:
    tensors = (activities.h_NF, activities.labels_N, activities.ages_R, activities.score_BL, *activities.carried)
    return sum(each.nbytes for each in tensors if each is not None)


def journal_rate(samples: int) -> float:
    """Samples a second that a daemon acks in messages of 64, as in `tools/bench ingest`."""
    with temporary_daemon(*ingest.SETTINGS, "network.layers=[{connection={kind='dense',units=10}}]") as daemon:
        ingest.produce(daemon.endpoints["learn"], 5_120, 64)
        with Control(daemon.endpoints["control"]) as control:
            control.wait_idle(60)
        return ingest.produce(daemon.endpoints["learn"], samples, 64)[0]


def hop_costs(batch: int, units: tuple[int, ...], items: int, *, encrypted: bool) -> HopCosts:
    """Processor time at one end of a hop: the mean of sender and receiver, for activities of several sizes."""
    points = [(_hop_bytes(batch, each), _hop_s(batch, each, items, encrypted)) for each in units]
    fixed = max(0.0, line(points, 0.0))
    return HopCosts(seconds=fixed, seconds_per_byte=max(0.0, line(points, 1e9) - fixed) / 1e9)


def _output(batch: int, units: int) -> StageOutput:
    labels = torch.zeros(batch, dtype=torch.int64)
    activities = Activities(torch.rand(batch, units), labels, None, 0, "interleaved", score_BL=torch.rand(batch, 10))
    return StageOutput(0, 0, batch, activities)


def _hop_bytes(batch: int, units: int) -> int:
    return _bytes(_output(batch, units).activities)


def _hop_s(batch: int, units: int, items: int, encrypted: bool) -> float:
    """Raises EOFError if the receiver ends early."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    receiver = spawn.Process(target=_receive, args=(theirs, items, encrypted), daemon=True)
    receiver.start()
    theirs.close()  # so that `recv` notices when the receiver ends
    port, server_key, client = ours.recv()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = sockets.connected(context, "127.0.0.1", port, _TOKEN, client, server_key)
    outlet, item = HopOut(socket, _DEPTH, _go_on), _output(batch, units)
    outlet.put(item)
    ours.recv()
    start = time.process_time()
    for _ in range(items):
        outlet.put(item)
    received: float = ours.recv()
    sent = time.process_time() - start
    outlet.close()
    receiver.join(_JOIN_S)
    context.destroy(linger=0)
    return (sent + received) / 2 / items


def _go_on() -> None:
    pass


def _receive(connection: Any, items: int, encrypted: bool) -> None:
    """The process of the receiver. Says where it listens, that the first item is there, the time for the others."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys, client = (sockets.Keys.new(), sockets.Keys.new()) if encrypted else (None, None)
    socket, port = sockets.listening(context, "127.0.0.1", keys)
    connection.send((port, keys.public if keys else "", client))
    inlet = HopIn(socket, _TOKEN, _go_on, _no_barrier)
    inlet.get()
    start = time.process_time()
    connection.send(None)
    for _ in range(items):
        inlet.get()
    connection.send(time.process_time() - start)
    with suppress(Closed):
        inlet.get()
    context.destroy(linger=0)


def _no_barrier(message: Message) -> Barrier:
    raise AssertionError(f"no barrier was sent: {message.kind}")


def merge_cost(name: str, replicas: int) -> float:
    """Seconds for each byte of each replica that is averaged, in order, by one thread."""
    network = Network(recipe_of(name, 256))
    states = [
        torch.cat([value.flatten().float() for value in network.state_dict().values()]) for _ in range(replicas)
    ]
    start = time.thread_time()
    total = states[0].clone()
    for each in states[1:]:
        total += each
    total /= replicas
    return (time.thread_time() - start) / (replicas * states[0].nbytes)
