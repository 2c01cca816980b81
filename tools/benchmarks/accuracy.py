"""Test error and prequential error after one pass through the daemon, beside a backprop MLP.

The test split is used once per run, at the end. Hyper-parameters were chosen on the last 10,000 training images.
"""

import statistics

import numpy as np
import torch

from ffstream.client import Control, Predictor, Producer
from ffstream.data import Dataset, batches
from tests.harness.daemon import temporary_daemon
from tools.benchmarks import peers
from tools.benchmarks.report import Report

# Every microbatch is predicted before it is learned, so the queue of the evaluation must hold a whole pass.
SETTINGS = ("prequential.busy_fraction=1", "prequential.queue_depth=100000")
_WIDTHS = (784, 512, 512)


def run(report: Report, dataset: Dataset, seeds: int, settings: tuple[str, ...] = ()) -> None:
    """One pass for each seed. The seed decides the order of the stream and the initial weights."""
    tests, prequentials, mlp_tests, mlp_prequentials = [], [], [], []
    for seed in range(seeds):
        test, prequential = _daemon(dataset, seed, settings)
        mlp_test, mlp_prequential = _backprop(dataset, seed)
        report.add(f"accuracy/{dataset.name}/test/seed{seed}", test, "%", "backprop_mlp", mlp_test)
        report.add(
            f"accuracy/{dataset.name}/prequential/seed{seed}", prequential, "%", "backprop_mlp", mlp_prequential
        )
        tests.append(test)
        prequentials.append(prequential)
        mlp_tests.append(mlp_test)
        mlp_prequentials.append(mlp_prequential)
    median = statistics.median
    report.add(f"accuracy/{dataset.name}/test", median(tests), "%", "backprop_mlp", median(mlp_tests))
    report.add(
        f"accuracy/{dataset.name}/prequential", median(prequentials), "%", "backprop_mlp", median(mlp_prequentials)
    )


def overlay_method(report: Report, dataset: Dataset, updates: int) -> None:
    """Test error of the label-in-pixels method after `updates` full-batch updates."""
    torch.manual_seed(0)
    images, labels = _tensors(dataset.train.images, dataset.train.labels)
    method = peers.OverlayMethod(_WIDTHS)
    for _ in range(updates):
        method.update(images, labels)
    error = method.error(*_tensors(dataset.test.images, dataset.test.labels))
    report.add(f"accuracy/{dataset.name}/overlay_method/{updates}_updates", 100 * error, "%")


def _daemon(dataset: Dataset, seed: int, settings: tuple[str, ...]) -> tuple[float, float]:
    with temporary_daemon(f"network.seed={seed}", *SETTINGS, *settings) as daemon:
        with Producer(daemon.endpoints["learn"]) as producer:
            for images, labels in batches(dataset.train, 64, seed=seed):
                producer.send(images, labels)
        with Control(daemon.endpoints["control"]) as control:
            control.wait_idle(600)
            control.request("checkpoint", {"timeout_s": 600}, 610)  # complete only once the evaluator has caught up
            prequential = control.status()["prequential_error_total"]
        with Predictor(daemon.endpoints["predict"]) as predictor:
            labels = np.concatenate(
                [predictor.predict(part).labels for part in np.array_split(dataset.test.images, 20)]
            )
    return 100 * float((labels != dataset.test.labels).mean()), 100 * prequential


def _backprop(dataset: Dataset, seed: int) -> tuple[float, float]:
    mlp, wrong = peers.BackpropMlp(_WIDTHS, seed), 0
    for images, labels in batches(dataset.train, 64, seed=seed):
        x, y = _tensors(images, labels)
        wrong += mlp.wrong(x, y)
        mlp.learn(x, y)
    x, y = _tensors(dataset.test.images, dataset.test.labels)
    return 100 * mlp.wrong(x, y) / len(y), 100 * wrong / len(dataset.train)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(images.reshape(len(images), -1)).to(torch.float32).div_(255)
    return pixels.sub_(0.1307).div_(0.3081), torch.from_numpy(labels.astype(np.int64))
