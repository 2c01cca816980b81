"""What ffstream is compared with. None of this is part of the product.

Shapes: B samples, I inputs, O outputs.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def computing(dtype: torch.dtype, threads: int) -> Iterator[None]:
    """In the block, matrix products on the CPU are computed in `dtype`, and operations by so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            yield
    finally:
        torch.set_num_threads(before)


class OverlayMethod:
    """The widely copied label-in-pixels method: autograd, full batch, layer after layer; label in the first ten
    pixels, unit-length input, mean goodness, θ = 3, Adam 0.03."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self.layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
        self.optimizers = [torch.optim.Adam(layer.parameters(), lr=0.03) for layer in self.layers]

    def update(self, images_BI: Tensor, labels_B: Tensor) -> None:
        """One full-batch update of every layer."""
        wrong_B = (labels_B + torch.randint(1, 10, labels_B.shape)) % 10
        positive, negative = overlay(images_BI, labels_B), overlay(images_BI, wrong_B)
        for layer, optimizer in zip(self.layers, self.optimizers, strict=True):
            h_positive, h_negative = self._forward(layer, positive), self._forward(layer, negative)
            goodness_positive, goodness_negative = h_positive.square().mean(1), h_negative.square().mean(1)
            loss = nn.functional.softplus(torch.cat((3 - goodness_positive, goodness_negative - 3))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            positive, negative = h_positive.detach(), h_negative.detach()

    def _forward(self, layer: nn.Linear, x_BI: Tensor) -> Tensor:
        direction = x_BI / (x_BI.norm(2, 1, keepdim=True) + 1e-4)
        return torch.relu(layer(direction))

    def error(self, images_BI: Tensor, labels_B: Tensor) -> float:
        """The share of samples that it predicts wrong."""
        goodness = []
        with torch.no_grad():
            for label in range(10):
                h = overlay(images_BI, torch.full_like(labels_B, label))
                total = torch.zeros(len(h))
                for layer in self.layers:
                    h = self._forward(layer, h)
                    total += h.square().mean(1)
                goodness.append(total)
        return float((torch.stack(goodness, 1).argmax(1) != labels_B).float().mean())


def overlay(images_BI: Tensor, labels_B: Tensor) -> Tensor:
    """The images with the label as one bright pixel among the first ten."""
    x_BI = images_BI.clone()
    x_BI[:, :10] = 0
    x_BI[torch.arange(len(x_BI)), labels_B] = images_BI.max()
    return x_BI


class BackpropMlp:
    """A multi-layer perceptron of the same widths, trained by backpropagation with Adam."""

    def __init__(self, widths: tuple[int, ...], seed: int = 0, device: str | torch.device = "cpu") -> None:
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.model = nn.Sequential(*parts, nn.Linear(widths[-1], 10)).to(device)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

    def learn(self, images_BI: Tensor, labels_B: Tensor) -> None:
        """One update."""
        loss = nn.functional.cross_entropy(self.model(images_BI), labels_B)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def wrong(self, images_BI: Tensor, labels_B: Tensor) -> int:
        """The number of samples that it predicts wrong."""
        with torch.no_grad():
            return int((self.model(images_BI).argmax(1) != labels_B).sum())
