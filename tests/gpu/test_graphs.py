"""The benchmark's CUDA graphs: what they learn is what the serial reference learns."""

from dataclasses import replace

import pytest
import torch

from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from tests.gpu.conftest import Size
from tests.gpu.test_pipeline import distance
from tools.benchmarks.device.case import Case
from tools.benchmarks.device.graphs import Graphs

pytestmark = pytest.mark.gpu
STEPS = 10


def test_replayed_graphs_learn_what_the_serial_reference_learns(size: Size, device: str) -> None:
    case = Case.make(size.widths, size.batch, torch.device(device))
    # The learning rate stands in the graph; SGD, because Adam makes whole steps of rounding errors.
    recipe = case.recipe.change(schedule="constant", optimizer="sgd", learning_rate=0.1)
    case = replace(case, recipe=recipe, dtype=torch.float32)
    serial, graphs = Network(recipe, Placement(case.device)), Graphs(case)
    start = {name: value.clone() for name, value in serial.state_dict().items()}
    for step in range(STEPS):
        serial.learn(case.images, case.labels, step)
        graphs.learn(step)
    case.synchronize()
    for layer in graphs.layers:
        name = f"layers.{layer.index}.parameters"
        assert distance(serial.state_dict()[name], start[name]) > 1e-4, "too little was learned to tell anything"
        assert distance(layer.state_dict()["parameters"], serial.state_dict()[name]) < 1e-4
